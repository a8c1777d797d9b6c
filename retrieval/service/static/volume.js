// A volume as it is looked at: decoded once, cut into slices in the browser's memory.
//
// Only the slice on display goes to the graphics card: without one, giving it a whole volume takes seconds, and
// again for each change of the window.

const { NVImage } = window.niivue;
const THICK = 1.5; // an axis this much coarser than the next is the one the slices lie along
const SAMPLES = 300_000;
const MARGIN = 0.03; // around what is shown, as a share of it
const THIN = 0.004; // a line of voxels with a smaller share of foreground counts as empty
const FLOAT = 16; // NIfTI's code for 32-bit floats

export class Volume {
  /** Decode a NIfTI file, gzipped or not. */
  static async read(bytes) {
    return new Volume(await NVImage.loadFromUrl({ url: bytes }));
  }

  constructor(image) {
    const { hdr } = image;
    this.voxels = image.img2RAS();
    this.dims = image.dimsRAS.slice(1, 4);
    this.spacing = image.pixDimsRAS.slice(1, 4).map((mm) => (mm > 0 ? mm : 1));
    this.slope = hdr.scl_slope || 1;
    this.inter = hdr.scl_inter || 0;
    this.placed = (hdr.xyzt_units & 7) !== 0; // the service gives no unit to images without a place in space
    this.frame = hdr.description.split("\0")[0].trim(); // one word for all that lies in one frame of reference
    const rows = [0, 1, 2].map((row) => [...image.matRAS.slice(4 * row, 4 * row + 4)]);
    this.axes = [0, 1, 2].map((axis) => rows.map((row) => row[axis])); // a step along each axis, in mm
    this.origin = rows.map((row) => row[3]);
    const told = (hdr.dim_info >> 4) & 3; // NIfTI's own word for the slice axis, where it is said
    this.axis = told ? told - 1 : sliceAxis(this.dims, this.spacing);
    this.across = this.axis === 0 ? 1 : 0;
    this.down = this.axis === 2 ? 1 : 2;
    [this.slices, this.columns, this.rows] = [this.axis, this.across, this.down].map((axis) => this.dims[axis]);
    [this.width, this.height] = [this.across, this.down].map((axis) => this.dims[axis] * this.spacing[axis]);
    const seen = survey(this.voxels, this.dims);
    this.range = [seen.low, seen.high].map((value) => value * this.slope + this.inter).sort((a, b) => a - b);
    /** The part of each slice that shows something: shares 0…1 of the two axes of the plane. */
    this.box = [this.across, this.down].map((axis) => [seen.from[axis], seen.to[axis]]);
  }

  /** Values of a slice into an array of `columns` × `rows`, in the order of the volume's axes. */
  plane(slice, values = new Float32Array(this.columns * this.rows)) {
    const strides = [1, this.dims[0], this.dims[0] * this.dims[1]];
    const [across, down] = [strides[this.across], strides[this.down]];
    let to = 0;
    for (let row = 0; row < this.rows; row++) {
      let from = slice * strides[this.axis] + row * down;
      for (let column = 0; column < this.columns; column++, from += across)
        values[to++] = this.voxels[from] * this.slope + this.inter;
    }
    return values;
  }

  /** Whether places in another volume are places in this one. */
  with(other) {
    return this.placed && other.placed && this.frame === other.frame;
  }

  /** The place in the patient, in mm, of voxel coordinates. */
  place(...voxel) {
    return this.origin.map((start, i) => start + voxel.reduce((sum, n, axis) => sum + n * this.axes[axis][i], 0));
  }

  /** Voxel coordinates of a place; the axes are at right angles. */
  voxel(place) {
    return this.axes.map((step) => {
      const along = step.reduce((sum, mm, i) => sum + mm * (place[i] - this.origin[i]), 0);
      return along / step.reduce((sum, mm) => sum + mm * mm, 0);
    });
  }

  /** The place in the middle of what a slice shows. */
  middle(slice) {
    const voxel = [];
    voxel[this.axis] = slice;
    [this.across, this.down].forEach((axis, i) => {
      voxel[axis] = ((this.box[i][0] + this.box[i][1]) / 2) * this.dims[axis] - 0.5;
    });
    return this.place(...voxel);
  }

  /** The slice on which a place lies, or the nearest. */
  sliceAt(place) {
    return Math.min(Math.max(Math.round(this.voxel(place)[this.axis]), 0), this.slices - 1);
  }

  /**
   * Values at the places that another volume shows on a slice, in rows from the top left of what is displayed;
   * NaN beyond this volume, and null where nothing tells what lies where.
   */
  cut(other, slice, width, height) {
    if (!this.with(other)) return null;
    const at = (u, v) => {
      const voxel = [];
      voxel[other.axis] = slice;
      [other.across, other.down].forEach((axis, i) => {
        const [low, high] = other.box[i];
        voxel[axis] = (high - (i ? v : u) * (high - low)) * other.dims[axis] - 0.5;
      });
      return this.voxel(other.place(...voxel));
    };
    // a plane is a plane in the other's voxels, too
    const corner = at(0, 0);
    const [right, below] = [at(1, 0), at(0, 1)].map((end) => end.map((n, i) => n - corner[i]));
    const values = new Float32Array(width * height);
    for (let row = 0, to = 0; row < height; row++)
      for (let column = 0; column < width; column++, to++) {
        const [u, v] = [(column + 0.5) / width, (row + 0.5) / height];
        const [x, y, z] = corner.map((start, i) => Math.round(start + u * right[i] + v * below[i]));
        const inside = x >= 0 && y >= 0 && z >= 0 && x < this.dims[0] && y < this.dims[1] && z < this.dims[2];
        const stored = inside ? this.voxels[x + this.dims[0] * (y + this.dims[1] * z)] : NaN;
        values[to] = stored * this.slope + this.inter;
      }
    return values;
  }

  /** A slice as an image of its own for NiiVue, to be filled anew by `plane`. */
  async image(slice, look = {}) {
    const [x, y] = [this.spacing[this.across], this.spacing[this.down]];
    const affine = [x, 0, 0, 0, 0, y, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1];
    const file = NVImage.createNiftiArray([this.columns, this.rows, 1], [x, y, 1], affine, FLOAT, this.plane(slice));
    return NVImage.loadFromUrl({ url: file, ...look });
  }
}

/** The axis with a single plane, else the coarsest one, or the last where none stands out (as indexer/scan.py). */
export function sliceAxis(dims, spacing) {
  const single = [0, 1, 2].filter((axis) => dims[axis] === 1);
  if (single.length === 1) return single[0];
  const coarsest = spacing.indexOf(Math.max(...spacing));
  const others = spacing.filter((_, axis) => axis !== coarsest);
  return spacing[coarsest] >= THICK * Math.max(...others) ? coarsest : 2;
}

/**
 * Where the values and the voxels lie that are worth seeing.
 *
 * `low`, `high`: 0.5th and 99.8th percentile of what is not background (the first voxel's value), in stored
 * values. `from`, `to`: the box of the foreground as shares 0…1 of each axis.
 */
export function survey(voxels, [nx, ny, nz]) {
  const step = Math.max(1, Math.round(Math.cbrt((nx * ny * nz) / SAMPLES)));
  const steps = [nx, ny, nz].map((n) => Math.min(step, Math.max(1, Math.floor(n / 8))));
  const background = voxels[0];
  const each = (look) => {
    for (let z = 0; z < nz; z += steps[2])
      for (let y = 0; y < ny; y += steps[1])
        for (let x = 0; x < nx; x += steps[0]) {
          const value = voxels[x + nx * (y + ny * z)];
          if (Number.isFinite(value)) look(value, x, y, z);
        }
  };
  const values = { all: [], shown: [] };
  each((value) => {
    values.all.push(value);
    if (value !== background) values.shown.push(value);
  });
  const sorted = Float64Array.from(values.shown.length > values.all.length / 100 ? values.shown : values.all).sort();
  const at = (share) => sorted[Math.round(share * (sorted.length - 1))] ?? 0;
  const [low, high] = [at(0.005), at(0.998)];

  const counts = [nx, ny, nz].map((n) => new Uint32Array(n));
  const least = (high - low) / 10;
  each((value, ...place) => {
    if (Math.abs(value - background) > least) place.forEach((i, axis) => counts[axis][i]++);
  });
  const box = counts.map((count, axis) => {
    const line = values.all.length / Math.ceil(count.length / steps[axis]);
    const shown = [...count.keys()].filter((i) => count[i] > THIN * line);
    if (!shown.length) return [0, 1];
    const [first, last] = [shown[0], shown.at(-1) + steps[axis]];
    const margin = (last - first) * MARGIN;
    return [Math.max(first - margin, 0) / count.length, Math.min(last + margin, count.length) / count.length];
  });
  return { low, high: high > low ? high : low + 1, from: box.map((side) => side[0]), to: box.map((side) => side[1]) };
}
