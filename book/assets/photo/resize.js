// A photo as the model saw its training pictures: Pillow's resizing (its filters widen when they shrink), the crop from
// the centre, and normalised channels. Pure functions on bytes.

const CUBIC = (x) => ((x = Math.abs(x)) < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0);
const LINEAR = (x) => Math.max(0, 1 - Math.abs(x));
const FILTERS = { 2: [LINEAR, 1], 3: [CUBIC, 2] }; // Pillow's numbers

// For `count` outputs from `first` on, of `size` that stand for `from` inputs: where each starts and its weights.
function weightsOf(from, size, first, count, resample) {
  const [filter, reach] = FILTERS[resample];
  const scale = from / size;
  const wide = Math.max(scale, 1);
  return Array.from({ length: count }, (_, i) => {
    const centre = (first + i + 0.5) * scale;
    const start = Math.max(0, Math.floor(centre - reach * wide + 0.5));
    const end = Math.min(from, Math.floor(centre + reach * wide + 0.5));
    const weights = Float64Array.from({ length: end - start }, (_, k) => filter((start + k + 0.5 - centre) / wide));
    const sum = weights.reduce((a, b) => a + b, 0);
    return [start, weights.map((w) => w / sum)];
  });
}

const byte = (x) => Math.max(0, Math.min(255, Math.floor(x + 0.5)));

// What the processor does with a photo: the size it is resized to, and the part that is kept.
export function geometry(width, height, { resize, crop }) {
  let [w, h] = [width, height];
  if (resize?.shortest_edge) {
    const scale = resize.shortest_edge / Math.min(width, height);
    [w, h] = [Math.floor(width * scale + 1e-6), Math.floor(height * scale + 1e-6)];
  } else if (resize) [w, h] = [resize.width, resize.height];
  const [rows, columns] = crop ?? [h, w];
  return { w, h, left: Math.floor((w - columns) / 2), top: Math.floor((h - rows) / 2), columns, rows };
}

// RGBA bytes (height, width, 4) → float32 (3, rows, columns).
export function pixelsOf(rgba, width, height, about) {
  const { w, h, left, top, columns, rows } = geometry(width, height, about);
  const across = weightsOf(width, w, left, columns, about.resample);
  const down = weightsOf(height, h, top, rows, about.resample);
  const narrow = new Uint8Array(height * columns * 3);
  for (let y = 0; y < height; y++)
    for (let x = 0; x < columns; x++) {
      const [start, weights] = across[x];
      let [r, g, b] = [0, 0, 0];
      for (let k = 0, at = 4 * (y * width + start); k < weights.length; k++, at += 4) {
        r += weights[k] * rgba[at];
        g += weights[k] * rgba[at + 1];
        b += weights[k] * rgba[at + 2];
      }
      narrow.set([byte(r), byte(g), byte(b)], 3 * (y * columns + x));
    }
  const out = new Float32Array(3 * rows * columns);
  for (let y = 0; y < rows; y++)
    for (let x = 0; x < columns; x++)
      for (let c = 0; c < 3; c++) {
        const [start, weights] = down[y];
        let sum = 0;
        for (let k = 0; k < weights.length; k++) sum += weights[k] * narrow[3 * ((start + k) * columns + x) + c];
        out[(c * rows + y) * columns + x] = (byte(sum) / 255 - about.mean[c]) / about.std[c];
      }
  return out;
}
