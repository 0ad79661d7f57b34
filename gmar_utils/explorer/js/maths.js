// Every number of a map, without a page: pure functions, no DOM, no state, no import. Load it as an ES module, or paste
// its text in front of your own code inside one <script type="module"> (a page opened from disk may not import files).
//
// It exports
//   NORMS, VARIANTS                 names in the order that the explorer counts them in
//   dequantise(codes, N)            bytes of pack.quantise → attention, rows sum to 1
//   mute(weights, L, H, muted)      head weights with [layer, head] pairs at 0 → { w, active }
//   fuse(a, [L, H, N], w)           Â of every layer, L·N·N
//   rollout(fused, N, layers, readout, alpha, variant)   token scores, as weighted_rollout in methods/weighting.py
//   polynomial(coefficients, alpha) scores at α from their coefficients, lowest power first, as alpha_polynomial there
//   minmax(values)                  to [0, 1]; a constant map becomes 0
//   highestFirst(map), checksum(map), percent(p)
//   enlarge(map, [R, C], w, h)      bilinear, align_corners=False
//   contour(map, [R, C], line)      calls line(ax, ay, bx, by), in patches, where the map crosses one half
//   MAGMA, colour(v), isLight(v)    matplotlib's magma as 256 × [r, g, b]; one value's colour; does black read on it

export const NORMS = ["l1", "l2", null];
export const VARIANTS = ["paper", "report", "output-first"];

// One byte q an entry, stored as the difference to the entry above, and each row scaled to its own maximum. Rows of
// attention sum to 1, which gives the scale back: a = q^1.5 / Σ q^1.5.
export function dequantise(codes, N) {
  const q = Uint8Array.from(codes);
  const a = new Float32Array(q.length);
  for (let row = 0; row < q.length; row += N) {
    if (row % (N * N)) for (let j = row; j < row + N; j++) q[j] += q[j - N];
    let sum = 0;
    for (let j = row; j < row + N; j++) sum += a[j] = q[j] * Math.sqrt(q[j]);
    for (let j = row; j < row + N; j++) a[j] /= sum;
  }
  return a;
}

// Head weights with the muted heads at 0 and the others of a layer summing to 1. A layer without heads is not active.
export function mute(weights, L, H, muted) {
  const w = Float64Array.from(weights);
  const active = [];
  for (const [layer, head] of muted) w[(layer - 1) * H + head - 1] = 0;
  for (let l = 0; l < L; l++) {
    let sum = 0;
    for (let h = 0; h < H; h++) sum += w[l * H + h];
    for (let h = 0; h < H; h++) w[l * H + h] /= sum || 1;
    active.push(sum > 0);
  }
  return { w, active };
}

// Â of every layer: the heads' attention added up with their weights.
export function fuse(a, [L, H, N], w) {
  const fused = new Float64Array(L * N * N);
  for (let l = 0; l < L; l++)
    for (let h = 0; h < H; h++) {
      const weight = w[l * H + h];
      const from = (l * H + h) * N * N;
      const to = l * N * N;
      if (weight) for (let k = 0; k < N * N; k++) fused[to + k] += weight * a[from + k];
    }
  return fused;
}

// Token scores: the row v₀ carried through the layers.
export function rollout(fused, N, layers, readout, alpha, variant) {
  let v = Float64Array.from(readout);
  for (const l of variant === "output-first" ? [...layers].reverse() : layers) {
    const next = new Float64Array(N);
    const residual = variant === "paper" ? readout : v;
    for (let i = 0; i < N; i++)
      if (v[i]) {
        const row = (l * N + i) * N;
        for (let j = 0; j < N; j++) next[j] += v[i] * fused[row + j];
      }
    for (let j = 0; j < N; j++) next[j] += alpha * residual[j];
    v = next;
  }
  return v;
}

// Σ_k αᵏ c_k by Horner's rule.
export function polynomial(coefficients, alpha) {
  const sum = new Float64Array(coefficients[0].length);
  for (const c of [...coefficients].reverse()) for (let j = 0; j < sum.length; j++) sum[j] = sum[j] * alpha + c[j];
  return sum;
}

export function minmax(values) {
  const low = Math.min(...values);
  const range = Math.max(...values) - low;
  return Float64Array.from(values, (x) => (range > 0 ? (x - low) / range : 0));
}

export const highestFirst = (map) => [...map.keys()].sort((i, j) => map[j] - map[i] || i - j);

// Where a map lies, as one number: tests compare it with NumPy's.
export const checksum = (map) => map.reduce((s, x, k) => s + x * (k + 1), 0) / ((map.length * (map.length + 1)) / 2);

// A probability in percent, small ones with more digits; the sign stays on its number's line.
export const percent = (p) => `${(100 * p).toFixed(p < 0.0095 ? 2 : p < 0.095 ? 1 : 0)}\u00a0%`;

// Bilinear: for each of n pixels the cell on its left and how far it is towards the next one.
function positions(n, cells) {
  return Array.from({ length: n }, (_, i) => {
    const x = Math.min(Math.max(((i + 0.5) * cells) / n - 0.5, 0), cells - 1);
    const left = Math.min(Math.floor(x), Math.max(cells - 2, 0));
    return [left, x - left];
  });
}

export function enlarge(map, [R, C], width, height) {
  const xs = positions(width, C);
  const out = new Float32Array(width * height);
  const right = C > 1 ? 1 : 0;
  const below = R > 1 ? C : 0;
  let k = 0;
  for (const [r, fy] of positions(height, R))
    for (const [c, fx] of xs) {
      const i = r * C + c;
      const top = map[i] + fx * (map[i + right] - map[i]);
      const bottom = map[i + below] + fx * (map[i + below + right] - map[i + below]);
      out[k++] = top + fy * (bottom - top);
    }
  return out;
}

// Marching squares on a grid four times as fine as the patches.
export function contour(map, [R, C], line) {
  const rows = 4 * R;
  const columns = 4 * C;
  const fine = enlarge(map, [R, C], columns, rows).map((v) => v - 0.5);
  for (let y = 0; y + 1 < rows; y++)
    for (let x = 0; x + 1 < columns; x++) {
      const corners = [[x, y], [x + 1, y], [x + 1, y + 1], [x, y + 1]]; // prettier-ignore
      const ends = [];
      for (let k = 0; k < 4; k++) {
        const [ax, ay] = corners[k];
        const [bx, by] = corners[(k + 1) % 4];
        const a = fine[ay * columns + ax];
        const b = fine[by * columns + bx];
        if (a > 0 !== b > 0)
          ends.push([(ax + ((bx - ax) * a) / (a - b) + 0.5) / 4, (ay + ((by - ay) * a) / (a - b) + 0.5) / 4]);
      }
      for (let k = 0; k + 1 < ends.length; k += 2) line(...ends[k], ...ends[k + 1]);
    }
}

// matplotlib's magma at 33 places; straight lines between them are within 1.3 of 255.
const STOPS = (
  "000004 030311 0a0822 130d33 1d1146 28115a 36106a 430f76 50127c 5d177f 691c81 762181 822681 8f2a81 9c2e7f a9327d " +
  "b63779 c33b75 cf4170 db486a e65163 ee5c5e f5695c f9785d fb8761 fd9668 fea571 feb47b fec387 fed194 fde0a2 fceeb0 fcfdbf"
)
  .split(" ")
  .map((hex) => [0, 2, 4].map((k) => parseInt(hex.slice(k, k + 2), 16)));

export const MAGMA = Array.from({ length: 256 }, (_, i) => {
  const x = (i / 255) * (STOPS.length - 1);
  const low = Math.min(Math.floor(x), STOPS.length - 2);
  return STOPS[low].map((c, k) => Math.round(c + (x - low) * (STOPS[low + 1][k] - c)));
});

export const colour = (v) => MAGMA[Math.round(255 * v)];

export function isLight(v) {
  const linear = (x) => ((x /= 255) <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
  const [r, g, b] = colour(v).map(linear);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179;
}
