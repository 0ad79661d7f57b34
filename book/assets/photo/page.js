// 'Your own photo': the page around the worker. It hands each photo's numbers to the explorer that the whole book uses.
import { highestFirst, VARIANTS } from "./maths.js";
import { button, h } from "./draw.js";
import { render } from "./main.js";
import { callOf, labelOf, mapAt, modelOf, MOST, photoOf, removal, STEPS } from "./reading.js";
import { known, pair, play, range, savePicture, select } from "./panels.js";

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
