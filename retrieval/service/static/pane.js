// One image: a slice of a volume drawn by NiiVue, seen as scan.py displays it, with what lies over it.
//
// NiiVue draws; the hands are here. Slices are counted along the scan's slice axis in RAS+ order, pixels
// from the top left of the displayed slice (radiological convention), both as in the service's answers.

import { Volume } from "./volume.js";

const { Niivue } = window.niivue;
const SVG = "http://www.w3.org/2000/svg";
const SIDES = [["A", "P", "S", "I"], ["R", "L", "S", "I"], ["R", "L", "A", "P"]]; // left, right, top, bottom
const SMALLEST = 4; // pixels a side of a drawn box has at least

/**
 * Fires what hands ask for: `slice`, `box` (when drawn), and as `detail` `point` (places 0…1 across and down),
 * `window` {level, width} and `view` {x, y, zoom}. All but `slice` and `box` take effect when they are set, so
 * that the page can set them on both panes. `at` when another slice is shown, whoever asked. `fit` when the scale that would fill the pane may have changed.
 */
export class Pane extends EventTarget {
  constructor(root, title) {
    super();
    root.innerText = "";
    this.title = title;
    this.root = root;
    this.mode = "window";
    this.share = { level: 0.5, width: 1 };
    this.look = { x: 0, y: 0, zoom: 1 };
    this.marks = { box: null, point: null };
    this.explained = 0; // counts up, so that what comes late is dropped
    const part = (tag, name, parent, space) => {
      const made = space ? document.createElementNS(space, tag) : document.createElement(tag);
      made.setAttribute("class", name);
      return parent.appendChild(made);
    };
    this.caption = part("figcaption", "caption", root);
    this.stage = part("div", "stage", root);
    this.canvas = part("canvas", "image", this.stage);
    this.canvas.setAttribute("role", "img");
    this.over = part("svg", "over", this.stage, SVG);
    this.over.setAttribute("aria-hidden", "true");
    this.lines = [part("line", "cross", this.over, SVG), part("line", "cross", this.over, SVG)];
    this.rect = part("rect", "box", this.over, SVG);
    this.sides = ["left", "right", "top", "bottom"].map((side) => part("span", `side ${side}`, this.stage));
    this.values = part("span", "values", this.stage);
    this.message = part("p", "message", this.stage);
    this.scroll = part("input", "scroll", root);
    this.scroll.type = "range";
    this.scroll.setAttribute("aria-label", `${title} slice`);
    this.scroll.addEventListener("input", () => this.#move(Number(this.scroll.value)));
    this.#listen();
    this.bar = part("g", "bar", this.over, SVG);
    this.ruler = part("line", "ruler", this.bar, SVG);
    this.length = part("text", "length", this.bar, SVG);
    new ResizeObserver(() => requestAnimationFrame(() => this.#fire("fit"))).observe(this.stage);
  }

  /** Load NiiVue into the canvas; throws where the browser has no WebGL 2. */
  async start() {
    if (!document.createElement("canvas").getContext("webgl2"))
      throw new Error("This browser cannot draw the images: WebGL 2 is switched off.");
    this.nv = new Niivue({
      interactive: false,
      dragAndDropEnabled: false,
      crosshairWidth: 0,
      isOrientationTextVisible: false,
      isRadiologicalConvention: true,
      loadingText: "",
      logLevel: "error",
    });
    await this.nv.attachToCanvas(this.canvas, false);
    this.nv.setSliceType(this.nv.sliceTypeAxial); // each slice is given as an image of its own
  }

  /** Say something in place of the image. */
  say(text) {
    this.message.textContent = text;
    this.root.classList.toggle("empty", Boolean(text));
  }

  /** Show a volume at a slice; if it is null, at the place of the patient that is shown. */
  async show(data, slice, words) {
    const volume = await Volume.read(data);
    const at = Math.min(slice ?? this.#same(volume), volume.slices - 1);
    const image = await volume.image(at);
    this.explain(null);
    if (this.image) this.nv.removeVolume(this.image);
    [this.volume, this.image, this.words] = [volume, image, words];
    this.nv.addVolume(image);
    this.window(this.share);
    this.sides.forEach((side, i) => (side.textContent = volume.placed ? SIDES[volume.axis][i] : ""));
    this.scroll.max = volume.slices - 1;
    this.scroll.disabled = volume.slices < 2;
    this.say("");
    this.goto(at);
  }

  /** The slice of a volume at the place that is shown; at the same share of the slices where nothing tells. */
  #same(volume) {
    if (!this.volume) return Math.floor(volume.slices / 2);
    if (this.volume.with(volume)) return volume.sliceAt(this.volume.middle(this.slice));
    return Math.floor(((this.slice + 0.5) / this.volume.slices) * volume.slices);
  }

  /** Lay a volume of 0…1 on the same grid over the image, or take it away. */
  async explain(data) {
    const turn = ++this.explained;
    if (this.overlay) this.nv.removeVolume(this.overlay.image);
    this.overlay = null;
    if (data) {
      const volume = await Volume.read(data);
      const image = await volume.image(this.slice, { colormap: "warm", opacity: 0.4, cal_min: 0.2, cal_max: 1 });
      if (turn !== this.explained) return;
      this.overlay = { volume, image };
      this.nv.addVolume(image);
    }
    this.draw(true);
  }

  goto(slice) {
    if (!this.volume) return;
    const last = this.volume.slices - 1;
    this.slice = Math.min(Math.max(Math.round(slice), 0), last);
    this.scroll.value = this.slice;
    const where = `slice ${this.slice} of 0–${last}`;
    this.scroll.setAttribute("aria-valuetext", where);
    this.canvas.setAttribute("aria-label", `${this.title}: ${this.words}, ${where}`);
    this.caption.querySelector(".where")?.replaceChildren(where);
    this.#fire("at");
    this.draw(true);
  }

  /** Window as shares of the image's own range: level 0…1, width more than 0. */
  window(share) {
    this.share = share;
    if (!this.image) return;
    const [low, high] = this.volume.range;
    const [level, width] = [low + share.level * (high - low), share.width * (high - low)];
    this.image.cal_min = level - width / 2;
    this.image.cal_max = level + width / 2;
    const short = (value) => (Math.abs(value) >= 20 ? Math.round(value) : Number(value.toPrecision(2)));
    this.values.textContent = `L ${short(level)}  W ${short(width)}`;
    this.draw(true);
  }

  /** Pixels a millimetre that let the foreground fill the pane. */
  fit() {
    const { width, height, box } = this.volume;
    const [x, y] = [width, height].map((size, i) => size * (box[i][1] - box[i][0]));
    return Math.min(this.stage.clientWidth / x, this.stage.clientHeight / y);
  }

  /** Look at millimetres x across and y up from the foreground's middle, `zoom` times larger than `scale`. */
  view(look, scale = this.scale) {
    this.look = look;
    this.scale = scale;
    this.draw();
  }

  /** The box shown on a slice: {x0, y0, x1, y1, slice}, or null. */
  box(box) {
    this.marks.box = box;
    this.draw();
  }

  /** Crosshair at a place 0…1 across and down, or null. */
  point(point) {
    this.marks.point = point;
    this.draw();
  }

  /** Draw at the next frame; `anew` if the slice, its window or what lies over it is another. */
  draw(anew = false) {
    this.anew ||= anew;
    this.waiting ??= requestAnimationFrame(() => {
      this.waiting = null;
      if (this.image && this.scale && this.stage.clientWidth) this.#paint();
    });
  }

  #paint() {
    const { width, height, box } = this.volume;
    // NiiVue zooms about the origin of its millimetres, from the scale that shows the whole slice
    const whole = Math.min(this.stage.clientWidth / width, this.stage.clientHeight / height);
    const zoom = (this.scale * this.look.zoom) / whole;
    const pan = [width, height].map((size, i) => {
      const low = this.image.extentsMinOrtho[i];
      const middle = low + (size * (box[i][0] + box[i][1])) / 2 + (i ? this.look.y : this.look.x);
      return low + size / 2 - middle * zoom;
    });
    this.nv.scene.pan2Dxyzmm = [...pan, 0, zoom];
    this.nv.scene.crosshairPos = [0.5, 0.5, 0.5];
    if (this.anew) {
      this.anew = false;
      this.volume.plane(this.slice, this.image.img);
      this.overlay?.volume.plane(this.slice, this.overlay.image.img);
      this.nv.updateGLVolume();
    } else this.nv.drawScene();
    this.#over();
  }

  // ---- places ----------------------------------------------------------------------------------

  /** Where the displayed slice lies on the stage, in CSS pixels. */
  #frame() {
    const { leftTopMM, fovMM } = this.nv.screenSlices[0]; // from right to left, and from below
    const per = this.stage.clientHeight / fovMM[1];
    const [right, top] = this.image.extentsMaxOrtho;
    return {
      left: (leftTopMM[0] - right) * per,
      top: this.stage.clientHeight - (top - leftTopMM[1]) * per,
      width: this.volume.width * per,
      height: this.volume.height * per,
    };
  }

  /** Place 0…1 across and down of a pointer. */
  #place(event) {
    const { left, top, width, height } = this.#frame();
    const stage = this.stage.getBoundingClientRect();
    return [(event.clientX - stage.left - left) / width, (event.clientY - stage.top - top) / height];
  }

  #over() {
    const { left, top, width, height } = this.#frame();
    const set = (element, values) => {
      for (const [name, value] of Object.entries(values)) element.setAttribute(name, value);
    };
    const { box, point } = this.marks;
    const shown = box && box.slice === this.slice;
    this.rect.toggleAttribute("hidden", !shown);
    if (shown)
      set(this.rect, {
        x: left + (box.x0 / this.volume.columns) * width,
        y: top + (box.y0 / this.volume.rows) * height,
        width: ((box.x1 - box.x0) / this.volume.columns) * width,
        height: ((box.y1 - box.y0) / this.volume.rows) * height,
      });
    for (const line of this.lines) line.toggleAttribute("hidden", !point);
    if (point) {
      const [x, y] = [left + point[0] * width, top + point[1] * height];
      set(this.lines[0], { x1: x, x2: x, y1: top, y2: top + height });
      set(this.lines[1], { x1: left, x2: left + width, y1: y, y2: y });
    }
    const per = width / this.volume.width;
    const long = [100, 50, 20, 10, 5, 2, 1].find((mm) => mm * per < this.stage.clientWidth / 4) ?? 1;
    this.bar.toggleAttribute("hidden", !this.volume.placed);
    const [right, low] = [this.stage.clientWidth - 12, this.stage.clientHeight - 10];
    set(this.ruler, { x1: right - long * per, x2: right, y1: low, y2: low });
    set(this.length, { x: right, y: low - 5 });
    this.length.textContent = long >= 10 ? `${long / 10} cm` : `${long} mm`;
  }

  // ---- hands -----------------------------------------------------------------------------------

  #fire(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }

  #move(slice) {
    const before = this.slice;
    this.goto(slice);
    if (this.slice !== before) this.#fire("slice", this.slice);
  }

  #listen() {
    let turned = 0;
    this.stage.addEventListener("contextmenu", (event) => event.preventDefault());
    this.stage.addEventListener(
      "wheel",
      (event) => {
        event.preventDefault();
        if (!this.image) return;
        if (event.ctrlKey) return this.zoom(event.deltaY < 0 ? 1.15 : 1 / 1.15);
        // a notch of a wheel is one slice, a touchpad's small steps add up
        turned += Math.abs(event.deltaY) >= 50 ? Math.sign(event.deltaY) : event.deltaY / 30;
        const whole = Math.trunc(turned);
        turned -= whole;
        if (whole) this.#move(this.slice - whole);
      },
      { passive: false },
    );
    this.stage.addEventListener("pointerdown", (event) => {
      if (!this.image || event.target.closest("button")) return;
      const drag = this.#drag(event);
      if (!drag) return;
      event.preventDefault();
      this.stage.setPointerCapture(event.pointerId);
      const end = () => {
        this.stage.removeEventListener("pointermove", drag);
        if (drag.end) drag.end();
      };
      this.stage.addEventListener("pointermove", drag);
      this.stage.addEventListener("lostpointercapture", end, { once: true });
    });
  }

  /** What a drag that begins here does at each move. */
  #drag(start) {
    const mode = start.button === 2 ? "window" : start.button === 1 || start.shiftKey ? "view" : this.mode;
    if (mode === "region") {
      const [x, y] = this.#place(start);
      const slice = this.slice;
      const between = (a, b, n) => {
        const [low, high] = [Math.min(a, b), Math.max(a, b)].map((v) => Math.min(Math.max(v, 0), 1) * n);
        return [Math.floor(low), Math.ceil(high)];
      };
      const draw = (event) => {
        const [u, v] = this.#place(event);
        const [[x0, x1], [y0, y1]] = [between(x, u, this.volume.columns), between(y, v, this.volume.rows)];
        this.box({ x0, y0, x1, y1, slice });
      };
      draw.end = () => {
        const { x0, y0, x1, y1 } = this.marks.box ?? { x0: 0, x1: 0, y0: 0, y1: 0 };
        const large = x1 - x0 >= SMALLEST && y1 - y0 >= SMALLEST;
        if (!large) this.box(null);
        this.#fire("box", this.marks.box);
      };
      this.box(null);
      return draw;
    }
    if (mode === "point") {
      const place = (event) => {
        const point = this.#place(event).map((v) => Math.min(Math.max(v, 0), 1));
        this.#fire("point", point);
      };
      place(start);
      return place;
    }
    if (mode === "view") {
      const { x, y, zoom } = this.look;
      const per = this.scale * zoom;
      return (event) =>
        this.#fire("view", {
          x: x + (event.clientX - start.clientX) / per, // to the right of the screen is the patient's left
          y: y + (event.clientY - start.clientY) / per,
          zoom,
        });
    }
    const { level, width } = this.share;
    return (event) => {
      const [dx, dy] = [event.clientX - start.clientX, event.clientY - start.clientY];
      this.#fire("window", {
        level: Math.min(Math.max(level + dy / 400, 0), 1),
        width: Math.min(Math.max(width + dx / 300, 0.02), 2),
      });
    };
  }

  zoom(by) {
    const { x, y, zoom } = this.look;
    const next = Math.min(Math.max(zoom * by, 1), 12);
    this.#fire("view", next === 1 ? { x: 0, y: 0, zoom: 1 } : { x, y, zoom: next });
  }
}
