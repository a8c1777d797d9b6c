// The other sequences of a study at the place that a pane shows: small, and scrolling along with it.
//
// Each tile is the plane of the pane's image, cut out of another volume by its place in the patient. So it is
// the same place on whatever grid that volume lies.

import { Volume } from "./volume.js";

const HEIGHT = 88; // pixels of a tile

export class Tiles {
  /** Below a pane's image; `load` promises the bytes of a path. */
  constructor(pane, load) {
    this.pane = pane;
    this.load = load;
    this.root = pane.root.appendChild(document.createElement("div"));
    this.root.className = "tiles";
    this.root.setAttribute("role", "group");
    this.held = [];
    this.onchoose = () => {}; // given the scan whose tile was clicked
    this.turn = 0; // counts up, so that what comes late is dropped
    pane.addEventListener("at", () => this.draw());
  }

  /** Show scans ({sequence, volume}) of the pane's study; the one on display is marked. */
  async show(scans) {
    const turn = ++this.turn;
    const before = new Map(this.held.map((tile) => [tile.scan.volume, tile.data]));
    this.root.setAttribute("aria-label", `${this.pane.title} at this place`);
    this.held = scans.map((scan) => ({ scan, data: before.get(scan.volume) ?? null, ...this.#tile(scan) }));
    this.root.replaceChildren(...this.held.map((tile) => tile.button));
    this.draw();
    for (const tile of this.held) {
      if (tile.data) continue;
      try {
        const data = await Volume.read(await this.load(tile.scan.volume));
        if (turn !== this.turn) return;
        tile.data = data;
      } catch {
        tile.button.hidden = true; // it is shown larger on request, and says why it cannot be
      }
      this.draw();
    }
  }

  #tile(scan) {
    const button = document.createElement("button");
    button.type = "button";
    const canvas = button.appendChild(document.createElement("canvas"));
    button.append(scan.sequence ?? "unnamed");
    button.addEventListener("click", () => this.onchoose(scan));
    return { button, canvas };
  }

  /** Draw at the next frame what the pane shows. */
  draw() {
    this.waiting ??= requestAnimationFrame(() => {
      this.waiting = null;
      const { volume, slice, source } = this.pane;
      if (!volume) return;
      for (const tile of this.held) {
        tile.button.setAttribute("aria-pressed", String(tile.scan.volume === source));
        if (tile.data) this.#paint(tile, volume, slice);
      }
    });
  }

  #paint({ canvas, data, button }, volume, slice) {
    const [across, down] = [volume.width, volume.height].map((size, i) => size * (volume.box[i][1] - volume.box[i][0]));
    const height = HEIGHT;
    const width = Math.min(Math.max(Math.round((height * across) / down), 1), 2 * height);
    Object.assign(canvas, { width, height });
    const values = data.cut(volume, slice, width, height);
    button.hidden = !values;
    if (!values) return;
    const [low, high] = data.range;
    const image = new ImageData(width, height);
    values.forEach((value, i) => {
      const grey = Number.isNaN(value) ? 0 : ((value - low) / (high - low)) * 255;
      image.data.set([grey, grey, grey, 255], 4 * i); // clamped by the array
    });
    canvas.getContext("2d").putImageData(image, 0, 0);
  }
}
