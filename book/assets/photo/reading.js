// 'Your own photo': a photo's numbers as the explorer reads them, and its settings as traits without a widget.
import { minmax, percent, VARIANTS } from "./maths.js";
import { fromHeads, greyed } from "./photo.js";

export const MOST = 5; // classes to ask about
export const STEPS = 16; // of a deletion curve

// What the explorer reads of a photo: see photo.js. Classes are learned one after the other.
export function photoOf({ name, read }, first, about) {
  const [L, H, N] = about.shape;
  const [R, C] = about.grid;
  const weights = new Float32Array(MOST * 2 * L * H);
  const seen = [];
  const patches = (scores) => minmax(scores.subarray(N - R * C));
  const photo = {
    name,
    key: 0,
    code: JSON.stringify(name),
    preamble: `import gmar_utils\n\nvit = gmar_utils.load_model("${about.model}", image_size=${imageSize(about)})\n`,
    shape: about.shape,
    grid: about.grid,
    ...{ L, H, N, R, C },
    light: true, // its maps follow α
    error: 0,
    fractions: [0],
    note: `The model's weights are rounded to ${about.bits} bits, so Python's maps differ a little.`,
    fill: about.mean.map((x) => Math.round(255 * x)), // what zero in normalised space looks like
    curves: [], // of each class: what was computed so far
    variant: 0,
    targets: [],
    words: [],
    target_names: [],
    methods: ["Attention rollout", "GMAR, L1", "GMAR, L2", "GMAR, equal heads", "LeGrad", "Grad-CAM", "Gradient attention rollout", "Last-layer attention"], // prettier-ignore
    get follows() {
      return [[2, 2], [0, this.variant], [1, this.variant], [2, this.variant], null, null, null, null]; // prettier-ignore
    },
    get calls() {
      const gmar = (norm) => `"gmar", norm=${norm}, variant="${VARIANTS[this.variant]}"`;
      const named = ["legrad", "grad-cam", "chefer", "attention"].map((method) => `"${method}"`);
      return ['"rollout"', gmar('"l1"'), gmar('"l2"'), gmar("None"), ...named];
    },
    colours: about.colours,
    colour: read.picture,
    grey: greyed(read.picture),
    box: read.crop.map((share, k) => share * (k % 2 ? read.picture.height : read.picture.width)),
    map: (t, m) => patches(seen[t][m - 4]),
    curve: () => [0],
    ...fromHeads(about, first.attention, about.readout, weights),
    learn(data) {
      weights.set(data.weights, data.index * 2 * L * H);
      seen[data.index] = [data.legrad, data.gradcam, data.chefer, first.last];
      const word = about.labels[data.target]?.split(",")[0] ?? `class ${data.target}`;
      this.targets.push(data.target);
      this.words.push(word);
      this.target_names = [...this.target_names, `${word} ${percent(data.probability)}`];
    },
  };
  photo.learn(first);
  return photo;
}

const imageSize = ({ image_size: [a, b] }) => (a === b ? a : `(${a}, ${b})`);

export const labelOf = (model, photo, m) =>
  photo.methods[m] + (photo.follows[m] ? `, α = ${model.get("alpha")}${m ? `, ${VARIANTS[photo.variant]}` : ""}` : "");
export const callOf = (model, photo, m) => photo.calls[m] + (photo.follows[m] ? `, alpha=${model.get("alpha")}` : "");

// A photo of one class, with the deletion curves that are known, for the explorer's own panel.
export function removal(photo, t) {
  const known = photo.curves[t];
  return {
    ...photo,
    targets: [photo.targets[t]],
    words: [photo.words[t]],
    target_names: [photo.target_names[t]],
    fractions: Array.from({ length: STEPS + 1 }, (_, k) => k / STEPS),
    methods: known.map(({ label }) => label),
    colours: known.map(({ colour }) => colour),
    calls: known.map(({ call }) => call),
    follows: known.map(() => null),
    map: (_, i) => known[i].map,
    curve: (_, i) => known[i].curve,
  };
}

// A map of any method, at the settings of the model.
export function mapAt(model, photo, t, m) {
  const follows = photo.follows[m];
  if (!follows) return photo.map(t, m);
  const state = { t, norm: follows[0], variant: follows[1], alpha: model.get("alpha"), muted: [], first: 1 };
  return photo.mapAt({ ...state, last: photo.L });
}

// The traits of the explorer's widget, without a widget.
export function modelOf(photo) {
  let listeners = {};
  const traits = {
    photos: [photo],
    show: ["ask"],
    link: "own-photo",
    answer: "",
    presets: [],
    choices: [],
    target_names: photo.target_names,
    ...{ photo: 0, target: 0, norm: 0, variant: 0, alpha: 1, layers: [1, photo.L], muted: [], opacity: 0.65 },
    ...{ query: -1, look: photo.L, left: 1, right: 0, method: 1, step: 0 },
  };
  const model = {
    get: (name) => traits[name],
    set(name, value) {
      traits[name] = value;
      if (name === "variant") photo.variant = value;
      model.fire(`change:${name}`);
    },
    fire: (event) => listeners[event]?.forEach((f) => f()),
    save_changes() {},
    clear() {
      listeners = {};
    },
    on: (event, f) => (listeners[event] ??= new Set()).add(f),
    off: (event, f) => listeners[event]?.delete(f),
    with: (other) => ({ ...model, get: (name) => other[name] ?? traits[name] }),
  };
  return model;
}
