// 'Your own photo': the page around the worker. It hands each photo's numbers to the explorer that the whole book uses.
import { highestFirst, minmax, NORMS, percent, VARIANTS } from "./maths.js";
import { button, figure, h, legend, paint, picture } from "./draw.js";
import { fromHeads, greyed } from "./photo.js";
import { render } from "./main.js";

const MOST = 5; // classes to ask about
const STEPS = 16; // of a deletion curve
const KEPT = 8; // photos whose numbers stay in memory
const MB = (bytes) => `${(bytes / 1e6).toFixed(0)} MB`;

export function start(root, { about, worker: workerText, bytes, fetchParts }) {
  const classes = Math.min(MOST, about.labels.length);
  const status = h("p", { role: "status", "aria-live": "polite", class: "gmar-own-status" });
  const bar = h("progress", { max: 1, value: 0, "aria-label": "Progress" });
  bar.hidden = true;
  const load = button(`Load the model (${MB(bytes)})`, () => loaded());
  const list = h("div", { class: "gmar-buttons", role: "group", "aria-label": "Photos" });
  const stage = h("div", {});
  const choose = chooser("Choose photos", { multiple: "" });
  const take = chooser("Take a photo", { capture: "environment" });
  const zone = h(
    "div",
    { class: "gmar-drop" },
    h("p", {}, "Drop photos here, or paste one. They stay on this computer."),
    h("div", { class: "gmar-buttons" }, choose, take),
  );
  root.replaceChildren(h("div", { class: "gmar-buttons" }, load), bar, zone, status, list, stage, known(about));
  root.classList.add("mathjax_ignore", "tex2jax_ignore"); // a file's name with dollar signs is no formula

  const photos = []; // { file, name, read, view, model }
  let worker, ready, current;
  let turn = 0;
  let cleanups = [];
  say("The model is not loaded yet. Photos that you add now wait for it.");

  function say(words, share = null) {
    status.textContent = words;
    bar.hidden = share === null;
    if (share !== null) bar.value = share;
  }

  // ---- the model, once

  function loaded() {
    load.disabled = true;
    ready ??= begin().catch((error) => {
      ready = null;
      load.disabled = false;
      say(`The model could not be loaded: ${error.message}`);
      throw error;
    });
    return ready.then(() => photos.length && show(photos.length - 1)).catch(() => {});
  }

  async function begin() {
    const parts = await fetchParts((share) => say(`Loading the model: ${MB(share * bytes)} of ${MB(bytes)}`, share));
    say("Starting the model …", 1);
    worker = new Worker(URL.createObjectURL(new Blob([workerText], { type: "text/javascript" })));
    await new Promise((resolve, reject) => {
      worker.onerror = (event) => reject(new Error(event.message || "the worker did not start"));
      worker.onmessage = ({ data }) => (data.kind === "ready" ? resolve() : reject(new Error(data.message)));
      const code = new TextDecoder().decode(parts.code);
      worker.postMessage({ id: 0, about, code, wasm: parts.wasm, graph: parts.graph }, [parts.wasm, parts.graph]);
    });
    worker.onerror = (event) => say(`Something went wrong: ${event.message}`);
    worker.onmessage = ({ data }) => data.id === turn && heard(data);
    load.hidden = true;
    root.dataset.ready = "true";
    say("The model is loaded: from here on no network is needed.");
  }

  // ---- photos

  function chooser(words, attributes) {
    const input = h("input", { type: "file", accept: "image/*", "aria-label": words, ...attributes });
    input.addEventListener("change", () => {
      add([...input.files]);
      input.value = ""; // so that the same file can be chosen again
    });
    return h("label", { class: "gmar-file" }, words, input);
  }

  const filesOf = (data) => [...(data?.files ?? [])];
  const stop = (event) => event.preventDefault(); // a dropped file must not replace the page
  addEventListener("dragover", stop);
  addEventListener("drop", (event) => {
    stop(event);
    add(filesOf(event.dataTransfer));
  });
  addEventListener("paste", (event) => add(filesOf(event.clipboardData)));

  function add(files) {
    if (!files.length) return;
    for (const file of files) photos.push({ file, name: file.name || `photo ${photos.length + 1}`, view: null });
    listPhotos();
    if (ready) ready.then(() => show(photos.length - 1));
    else say(`${photos.length === 1 ? "One photo waits" : `${photos.length} photos wait`} for the model: load it above.`);
  }

  function listPhotos() {
    list.hidden = photos.length < 2;
    list.replaceChildren(...photos.map((photo, i) => button(photo.name, () => show(i))));
    [...list.children].forEach((b, i) => b.setAttribute("aria-pressed", photos[i] === current));
  }

  function show(i) {
    current = photos[i];
    turn += 1;
    listPhotos();
    delete root.dataset.done;
    if (current.view?.targets.length === classes) return present();
    say(`Reading ${current.name} …`, 0);
    worker.postMessage({ id: turn, photo: current.file, targets: classes });
  }

  function heard(data) {
    if (data.kind === "removed") {
      say("Removing patches …", data.share);
      if (data.probabilities) current.removed(data.probabilities);
    } else if (data.kind === "error") {
      say(`${current.name}: ${data.message}`);
      photos.splice(photos.indexOf(current), 1);
      current = null;
      stage.replaceChildren();
      listPhotos();
    } else if (data.kind === "photo") {
      current.read = data;
      say(`Asking the model about ${current.name} …`, 0.1);
    } else {
      const share = (data.index + 1) / classes;
      if (data.index === 0) {
        root.dataset.ms = data.ms.toFixed(0);
        current.view = photoOf(current, data, about);
        current.model = modelOf(current.view);
        const others = photos.filter((photo) => photo.view && photo !== current);
        for (const photo of others.slice(0, -KEPT)) photo.view = null;
        present();
      } else {
        current.view.learn(data);
        current.model.fire("change:target");
      }
      if (share < 1) say(`Class ${data.index + 2} of ${classes} …`, share);
      else finished();
    }
  }

  function finished() {
    const { width, height } = current.read;
    say(`${current.name}, ${width} × ${height} pixels: ${current.view.target_names.join(", ")}.`);
    root.dataset.done = current.name;
  }

  // ---- the explorer

  function present() {
    for (const cleanup of cleanups) cleanup.then((f) => f());
    const { model, view } = current;
    model.clear();
    const [asked, board, curves] = [h("div", {}), h("div", {}), h("div", {})];
    const openBoard = () => {
      if (!board.hasChildNodes()) cleanups.push(render({ model: model.with({ show: ["heads"] }), el: board }));
    };
    const remove = button("Remove its patches", () => removePatches(curves, remove));
    const variant = select("order of GMAR", VARIANTS, model, "variant");
    const norm = select("head weights of the board", ["L1 norm", "L2 norm", "equal"], model, "norm");
    const look = range("look in layer", 1, view.L, model, "look");
    const save = button("Save as PNG", () => savePicture(model, view, about));
    stage.replaceChildren(
      asked,
      h("div", { class: "gmar-buttons" }, variant, save),
      pair(model, view),
      h(
        "details",
        { class: "gmar-code", ontoggle: openBoard },
        h("summary", {}, "The heads: mute them, and see where a patch looks"),
        h("div", { class: "gmar-buttons" }, norm, look),
        board,
      ),
      h(
        "details",
        { class: "gmar-code" },
        h("summary", {}, "Deletion: does the map point at what the model needs?"),
        h("p", {}, "The patches of the chosen map vanish, the strongest first, and the model is asked again each time."),
        h("div", { class: "gmar-buttons" }, remove),
        curves,
      ),
    );
    cleanups = [render({ model, el: asked })];
    if (view.targets.length === classes) finished();
  }

  // The chosen map's deletion curve joins those of the same class that are there already.
  function removePatches(el, pressed) {
    const { model, view, read } = current;
    const [t, m] = [model.get("target"), model.get("method")];
    const map = mapAt(model, view, t, m);
    const line = { label: labelOf(model, view, m), map, colour: view.colours[m], call: callOf(model, view, m) };
    pressed.disabled = true;
    current.removed = (curve) => {
      pressed.disabled = false;
      finished();
      const known = (view.curves[t] ?? []).filter(({ label }) => label !== line.label);
      view.curves[t] = [...known, { ...line, curve }];
      const removed = removal(view, t);
      const of = modelOf(removed);
      of.set("method", removed.methods.length - 1);
      cleanups.push(render({ model: of.with({ show: ["deletion"] }), el }));
      play(el, of, removed);
    };
    say("Removing patches …", 0);
    const order = highestFirst(map);
    worker.postMessage({ id: turn, pixels: read.pixels, target: view.targets[t], order, steps: STEPS });
  }

  return { current: () => current, mapAt };
}

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

const labelOf = (model, photo, m) =>
  photo.methods[m] + (photo.follows[m] ? `, α = ${model.get("alpha")}${m ? `, ${VARIANTS[photo.variant]}` : ""}` : "");
const callOf = (model, photo, m) => photo.calls[m] + (photo.follows[m] ? `, alpha=${model.get("alpha")}` : "");

// A photo of one class, with the deletion curves that are known, for the explorer's own panel.
function removal(photo, t) {
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

// Which curve's patches are shown, and how many are gone.
function play(el, model, photo) {
  const method = select("order by", photo.methods, model, "method");
  const step = range("steps", 0, STEPS, model, "step");
  model.on("change:step", () => (step.lastChild.value = model.get("step")));
  el.before(el.previousElementSibling?.matches(".gmar-removed") ? "" : h("div", { class: "gmar-buttons gmar-removed" }));
  el.previousElementSibling.replaceChildren(method, step);
}

// A map of any method, at the settings of the model.
export function mapAt(model, photo, t, m) {
  const follows = photo.follows[m];
  if (!follows) return photo.map(t, m);
  const state = { t, norm: follows[0], variant: follows[1], alpha: model.get("alpha"), muted: [], first: 1 };
  return photo.mapAt({ ...state, last: photo.L });
}

// The traits of the explorer's widget, without a widget.
function modelOf(photo) {
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

function select(words, options, model, trait) {
  const input = h("select", {}, ...options.map((option, i) => h("option", { value: i }, option)));
  input.value = model.get(trait);
  input.addEventListener("change", () => model.set(trait, +input.value));
  return h("label", { class: "gmar-range" }, h("span", {}, words), input);
}

function range(words, min, max, model, trait) {
  const input = h("input", { type: "range", min, max, step: 1 });
  input.value = model.get(trait);
  input.addEventListener("input", () => model.set(trait, +input.value));
  return h("label", { class: "gmar-range" }, h("span", {}, words), input);
}

// What the model has a word for, and how often it is right: what its answers are worth.
function known({ model, labels, accuracy, image_size, bits }) {
  const right = accuracy ? ` It names ${accuracy}\u00a0% of its validation pictures right.` : "";
  return h(
    "details",
    { class: "gmar-code" },
    h("summary", {}, `What the model knows: ${labels.length} classes`),
    h(
      "p",
      {},
      `${model} sees a photo as ${image_size.join(" × ")} pixels; its weights are rounded to ${bits} bits.${right} ` +
        "A photo of something outside this list gets a wrong name, and a map for a wrong name is a map all the same.",
    ),
    h("p", {}, labels.map((label) => label.split(",")[0]).join(", ")),
  );
}

// Two classes, one method, side by side.
function pair(model, photo) {
  const sides = [0, 1].map((t) => {
    const choice = h("select", { "aria-label": ["left class", "right class"][t] });
    const canvas = picture();
    choice.addEventListener("change", draw);
    return { canvas, choice, t, el: figure(canvas, choice) };
  });
  function draw() {
    for (const { canvas, choice, t } of sides) {
      const names = photo.target_names;
      const chosen = choice.options.length ? +choice.value : t;
      if (choice.options.length !== names.length) {
        choice.replaceChildren(...names.map((name, i) => h("option", { value: i }, name)));
        choice.value = Math.min(Math.max(chosen, names.length > t ? t : 0), names.length - 1);
      }
      const m = model.get("method");
      paint(canvas, photo, mapAt(model, photo, +choice.value, m), model.get("opacity"));
      canvas.setAttribute("aria-label", `${photo.name}: ${photo.methods[m]} for ${names[+choice.value]}`);
    }
  }
  let waiting = 0;
  const soon = () => {
    clearTimeout(waiting); // when the hand rests: the picture above must follow the slider at once
    waiting = setTimeout(draw, 100);
  };
  for (const trait of ["target", "method", "alpha", "opacity", "variant"]) model.on(`change:${trait}`, soon);
  draw();
  const two = h("div", { class: "gmar-pair" }, ...sides.map((side) => side.el));
  return h("section", { class: "gmar-two" }, h("p", {}, "Two classes, the same method"), two, legend("low", "high"));
}

// The picture with its caption and the sentence for a methods section, as a file.
function savePicture(model, photo, about) {
  const [t, m] = [model.get("target"), model.get("method")];
  const drawn = picture();
  paint(drawn, photo, mapAt(model, photo, t, m), model.get("opacity"));
  const follows = photo.follows[m];
  const options = follows
    ? `, α = ${model.get("alpha").toFixed(2)}, ${follows[1] < 0 ? "" : VARIANTS[follows[1]]}, head weights ${NORMS[follows[0]] ?? "equal"}`
    : "";
  const lines = [
    `Why ${photo.target_names[t]}? ${photo.methods[m]}${options}`,
    `${about.model} at ${about.image_size.join(" × ")} pixels, weights in ${about.bits} bits.`,
    about.sentences[m],
  ];
  const width = Math.max(drawn.width, 480);
  const canvas = h("canvas", { width, height: 10 });
  const context = canvas.getContext("2d");
  const font = "14px sans-serif";
  context.font = font;
  const wrapped = lines.flatMap((line) => wrap(context, line, width - 24));
  canvas.height = drawn.height + 20 * wrapped.length + 20;
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width, canvas.height);
  context.drawImage(drawn, (width - drawn.width) / 2, 0);
  context.font = font;
  context.fillStyle = "#000";
  wrapped.forEach((line, i) => context.fillText(line, 12, drawn.height + 24 + 20 * i));
  canvas.toBlob((blob) => {
    const stem = photo.name.replace(/\.[^.]*$/, "");
    const method = photo.calls[m].split('"')[1];
    const link = h("a", { href: URL.createObjectURL(blob), download: `${stem}.${method}.png` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  });
}

function wrap(context, text, width) {
  const lines = [""];
  for (const word of text.split(" ")) {
    const longer = `${lines.at(-1)} ${word}`.trim();
    if (context.measureText(longer).width > width && lines.at(-1)) lines.push(word);
    else lines[lines.length - 1] = longer;
  }
  return lines;
}
