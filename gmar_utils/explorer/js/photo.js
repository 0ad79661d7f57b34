// One photo's numbers, as pack.py wrote them: info, picture, read-out, and what maps are computed from.
import { dequantise, fuse, minmax, mute, rollout, VARIANTS } from "./maths.js";
import { sheet } from "./draw.js";

const bytes = (v) => new Uint8Array(v.buffer, v.byteOffset, v.byteLength);
const floats = (v) => new Float32Array(bytes(v).slice().buffer); // slice: a copy starts at a multiple of four
const inflated = async (v) =>
  new Response(new Blob([bytes(v)]).stream().pipeThrough(new DecompressionStream("deflate"))).arrayBuffer();

export async function unpack(model) {
  const info = model.get("info");
  const [L, H, N] = info.shape;
  const [R, C] = info.grid;
  const M = info.methods.length;
  const S = info.fractions.length;
  const colour = await createImageBitmap(new Blob([bytes(model.get("image"))], { type: "image/jpeg" }));
  const attention = dequantise(new Uint8Array(await inflated(model.get("attention"))), N);
  const readout = floats(model.get("readout"));
  const weights = floats(model.get("weights"));
  const maps = floats(model.get("maps"));
  const curves = floats(model.get("curves"));
  return {
    ...info,
    L,
    H,
    N,
    R,
    C,
    colour,
    grey: greyed(colour),
    box: info.crop.map((share, k) => share * (k % 2 ? colour.height : colour.width)),
    readout,
    ...fromAttention(info, attention, weights, readout),
    map: (t, m) => Float64Array.from(maps.subarray((t * M + m) * R * C, (t * M + m + 1) * R * C)),
    curve: (t, m) => curves.subarray((t * M + m) * S, (t * M + m + 1) * S),
  };
}

function greyed(colour) {
  const grey = sheet(colour.width, colour.height);
  const context = grey.getContext("2d");
  context.drawImage(colour, 0, 0);
  context.globalCompositeOperation = "saturation";
  context.fillStyle = "#808080";
  context.fillRect(0, 0, grey.width, grey.height);
  return grey;
}

// The map at some settings; what depends on the heads alone is kept for the last few choices of them.
function fromAttention({ shape, grid }, attention, weights, readout) {
  const [L, H, N] = shape;
  const kept = new Map();
  const weightsOf = (t, norm) =>
    norm < 2 ? weights.subarray((t * 2 + norm) * L * H, (t * 2 + norm + 1) * L * H) : new Array(L * H).fill(1 / H);
  function heads(t, norm, muted) {
    const key = JSON.stringify([t, norm, muted]);
    if (!kept.has(key)) {
      if (kept.size > 3) kept.delete(kept.keys().next().value);
      const { w, active } = mute(weightsOf(t, norm), L, H, muted);
      kept.set(key, { w, active, fused: fuse(attention, shape, w) });
    }
    return kept.get(key);
  }
  function mapAt({ t, norm, muted, alpha, variant, first, last }) {
    const { active, fused } = heads(t, norm, muted);
    const layers = [...active.keys()].filter((l) => active[l] && l + 1 >= first && l + 1 <= last);
    return minmax(rollout(fused, N, layers, readout, alpha, VARIANTS[variant]).subarray(N - grid[0] * grid[1]));
  }
  return { heads, mapAt };
}
