// One photo's numbers, as packing.py wrote them: info, picture, and what maps are computed from. Either the coefficients
// of its polynomials in α (light), or the attention of every head.
import { dequantise, fuse, minmax, mute, polynomial, rollout, VARIANTS } from "./maths.js";
import { sheet } from "./draw.js";

const bytes = (v) => new Uint8Array(v.buffer, v.byteOffset, v.byteLength);
const numbers = (v, Kind) => new Kind(bytes(v).slice().buffer); // slice: a copy starts at a multiple of four
const inflated = async (v) =>
  new Response(new Blob([bytes(v)]).stream().pipeThrough(new DecompressionStream("deflate"))).arrayBuffer();

export async function unpack(model) {
  const info = model.get("info");
  const [L, H, N] = info.shape;
  const [R, C] = info.grid;
  const M = info.methods.length;
  const S = info.fractions.length;
  const colour = await createImageBitmap(new Blob([bytes(model.get("image"))], { type: "image/jpeg" }));
  const maps = numbers(model.get("maps"), Uint16Array);
  const curves = numbers(model.get("curves"), Float32Array);
  const light = model.get("polynomials").byteLength > 0;
  return {
    ...info,
    L,
    H,
    N,
    R,
    C,
    light,
    colour,
    grey: greyed(colour),
    box: info.crop.map((share, k) => share * (k % 2 ? colour.height : colour.width)),
    map: (t, m) => Float64Array.from(maps.subarray((t * M + m) * R * C, (t * M + m + 1) * R * C), (x) => x / 65535),
    curve: (t, m) => curves.subarray((t * M + m) * S, (t * M + m + 1) * S),
    ...(light ? fromPolynomials(info, model) : await fromAttention(info, model)),
  };
}

export function greyed(colour) {
  const grey = sheet(colour.width, colour.height);
  const context = grey.getContext("2d");
  context.drawImage(colour, 0, 0);
  context.globalCompositeOperation = "saturation";
  context.fillStyle = "#808080";
  context.fillRect(0, 0, grey.width, grey.height);
  return grey;
}

// mapAt: the map at some settings, from 2 (paper) or L + 1 vectors: group 0 has equal heads, 1 + 2t + norm the others.
function fromPolynomials({ shape: [L], grid: [R, C] }, model) {
  const codes = numbers(model.get("polynomials"), Uint16Array);
  const scales = numbers(model.get("scales"), Float32Array);
  const starts = [0, 2, L + 3, 2 * L + 4];
  const vector = (k) => Float64Array.from(codes.subarray(k * R * C, (k + 1) * R * C), (code) => code * scales[k]);
  const mapAt = ({ t, norm, variant, alpha }) => {
    const first = (norm === 2 ? 0 : 1 + 2 * t + norm) * starts[3] + starts[variant];
    const count = starts[variant + 1] - starts[variant];
    return minmax(polynomial(Array.from({ length: count }, (_, k) => vector(first + k)), alpha));
  };
  return { mapAt };
}

async function fromAttention(info, model) {
  const attention = dequantise(new Uint8Array(await inflated(model.get("attention"))), info.shape[2]);
  const readout = numbers(model.get("readout"), Float32Array);
  return fromHeads(info, attention, readout, numbers(model.get("weights"), Float32Array));
}

// mapAt: the same from the attention, over some layers and without the muted heads. heads: what depends on the heads
// alone, kept for the last few choices of them. Weights: L1's and L2's of every target, each L × H.
export function fromHeads({ shape, grid: [R, C] }, attention, readout, weights) {
  const [L, H, N] = shape;
  const weightsOf = (t, norm) =>
    norm < 2 ? weights.subarray((t * 2 + norm) * L * H, (t * 2 + norm + 1) * L * H) : new Array(L * H).fill(1 / H);
  const kept = new Map();
  const heads = ({ t, norm, muted }) => {
    const key = JSON.stringify([t, norm, muted]);
    if (!kept.has(key)) {
      if (kept.size > 3) kept.delete(kept.keys().next().value);
      const { w, active } = mute(weightsOf(t, norm), L, H, muted);
      kept.set(key, { w, active, fused: fuse(attention, shape, w) });
    }
    return kept.get(key);
  };
  const mapAt = (state) => {
    const { active, fused } = heads(state);
    const layers = [...active.keys()].filter((l) => active[l] && l + 1 >= state.first && l + 1 <= state.last);
    const scores = rollout(fused, N, layers, readout, state.alpha, VARIANTS[state.variant]);
    return minmax(scores.subarray(N - R * C));
  };
  return { readout, heads, mapAt };
}
