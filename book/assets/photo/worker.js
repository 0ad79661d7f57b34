// The model, away from the page's own thread. In: the runtime and the graph once, then photos. Out: the photo as it will
// be drawn, and for each of its first classes what the maps are made of.
import { headWeights, gradCam, gradientRollout, lastAttention, meanOverLayers, softmax } from "./methods.js";
import { geometry, pixelsOf } from "./resize.js";

const SHOWN = 640; // pixels of the longer side on the page
const MOST = 24e6; // pixels that are read one by one; a larger photo is halved first, by the browser
let ort, session, about;
let latest = 0;

onmessage = async ({ data }) => {
  latest = data.id;
  try {
    await (data.graph ? load(data) : data.order ? remove(data) : explain(data));
  } catch (error) {
    postMessage({ id: data.id, kind: "error", message: String(error?.message ?? error) });
  }
};

async function load({ id, code, wasm, graph, ...rest }) {
  about = rest.about;
  const address = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
  ort = await import(address);
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmBinary = wasm;
  session = await ort.InferenceSession.create(new Uint8Array(graph));
  postMessage({ id, kind: "ready" });
}

async function explain({ id, photo, targets }) {
  const bitmap = await decoded(photo);
  const { width, height } = bitmap;
  const began = performance.now();
  const shrink = Math.min(1, SHOWN / Math.max(width, height));
  const shown = drawn(bitmap, Math.max(1, Math.round(width * shrink)), Math.max(1, Math.round(height * shrink)));
  const most = Math.min(1, Math.sqrt(MOST / (width * height)));
  const full = drawn(bitmap, Math.ceil(width * most), Math.ceil(height * most));
  bitmap.close();
  const rgba = full.getContext("2d").getImageData(0, 0, full.width, full.height).data;
  const pixels = pixelsOf(rgba, full.width, full.height, about);
  const { w, h, left, top, columns, rows } = geometry(full.width, full.height, about);
  const crop = [left / w, top / h, (left + columns) / w, (top + rows) / h];
  const picture = shown.transferToImageBitmap();
  postMessage({ id, kind: "photo", picture, crop, width, height, pixels }, [picture]);

  let first = null;
  for (let k = 0; k < targets && id === latest; k++) {
    const target = first ? first.order[k] : -1;
    const out = await run(pixels, target);
    if (!first) {
      const probabilities = softmax(out.logits);
      const order = [...probabilities.keys()].sort((i, j) => probabilities[j] - probabilities[i]);
      first = { order, probabilities };
    }
    const found = mapsOf(out, k === 0);
    const ids = { target: first.order[k], probability: first.probabilities[first.order[k]] };
    postMessage({ id, kind: "class", index: k, ...ids, ...found, ms: performance.now() - began });
    await breath();
  }
}

const breath = () => new Promise((resolve) => setTimeout(resolve)); // another photo may have come

// The target's probability while patches vanish (0 in normalised space), equal numbers a step, in the map's order.
async function remove({ id, pixels, target, order, steps }) {
  const [height, width] = about.image_size;
  const [R, C] = about.grid;
  const probabilities = [];
  for (let step = 0; step <= steps && id === latest; step++) {
    const gone = new Set(order.slice(0, Math.round((step * order.length) / steps)));
    const left = pixels.map((value, k) => {
      const row = Math.floor(((Math.floor(k / width) % height) * R) / height);
      return gone.has(row * C + Math.floor(((k % width) * C) / width)) ? 0 : value;
    });
    probabilities.push(softmax((await run(left, target)).logits)[target]);
    postMessage({ id, kind: "removed", share: step / steps, probabilities: step === steps ? probabilities : null });
    await breath();
  }
}

async function run(pixels, target) {
  const [height, width] = about.image_size;
  const found = await session.run({
    pixels: new ort.Tensor("float32", pixels, [1, 3, height, width]),
    target: new ort.Tensor("int64", BigInt64Array.of(BigInt(target)), [1]),
  });
  return Object.fromEntries(Object.entries(found).map(([name, tensor]) => [name, tensor.data]));
}

function mapsOf(out, withAttention) {
  const { shape, prefix_tokens: prefix, readout } = about;
  const [L, , N] = shape;
  return {
    weights: headWeights(out.gradient, shape),
    legrad: meanOverLayers(out.legrad, L, N),
    gradcam: gradCam(out.activation, out.activation_gradient, N, prefix),
    chefer: gradientRollout(out.attention, out.gradient, readout, shape),
    ...(withAttention ? { attention: out.attention, last: lastAttention(out.attention, readout, shape) } : {}),
  };
}

async function decoded(photo) {
  try {
    return await createImageBitmap(photo, { imageOrientation: "from-image" });
  } catch {
    const start = new TextDecoder("latin1").decode(await photo.slice(4, 12).arrayBuffer());
    const heic = /^ftyp(hei|hev|mif1|msf1)/.test(start) || /\.hei[cf]$/i.test(photo.name ?? "");
    throw new Error(
      heic
        ? "This is a HEIC photo, which this browser cannot read. Save it as JPEG first: on an iPhone, Settings › Camera › Formats › Most Compatible, or share the photo by mail."
        : photo.size
          ? "This file is not a picture that the browser can read. JPEG, PNG, WebP and GIF work."
          : "This file is empty (0 bytes).",
    );
  }
}

// Transparent pixels are laid on white, as in Python.
function drawn(bitmap, width, height) {
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width, height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, width, height);
  return canvas;
}
