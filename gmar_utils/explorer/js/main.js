// The view behind gmar_utils.explorer, the same in Jupyter, on Colab and in the static book (anywidget). Every number of
// a map is computed here from the photo's own numbers, so that no kernel and no network is needed.
import { checksum, highestFirst, VARIANTS } from "./maths.js";
import { button, h, place } from "./draw.js";
import { unpack } from "./photo.js";
import { stateCode } from "./code.js";
import { fromLink, linkOf, start, TRAITS } from "./link.js";
import { ask } from "./ask.js";
import { map } from "./map.js";
import { heads } from "./heads.js";
import { compare } from "./compare.js";
import { deletion } from "./deletion.js";

const PANELS = { ask, map, heads, compare, deletion };
const NORM_NAMES = ["L1", "L2", "no head weights"];

export async function render({ model, el }) {
  const fetch = async (id) =>
    typeof id === "string" ? unpack(await model.widget_manager.get_model(id.replace("IPY_MODEL_", ""))) : id;
  const photos = await Promise.all(model.get("photos").map(fetch));
  let waiting = 0;
  let speaking = 0;

  // What the panels share: the state that the sliders say, the map that follows, and how to change them.
  const view = {
    model,
    el,
    cleanups: [],
    set(changes) {
      for (const [trait, value] of Object.entries(changes)) model.set(trait, value);
      model.save_changes();
    },
    schedule() {
      waiting ||= requestAnimationFrame(draw);
    },
    heads: () => view.photo.heads(view.state),
    map: (changes) => view.photo.mapAt({ ...view.state, ...changes }),
    name: () => view.photo.target_names[view.state.t],
    word: () => view.photo.words[view.state.t],
    settings: () =>
      `${NORM_NAMES[view.state.norm]}, α = ${view.state.alpha.toFixed(2)}, ${VARIANTS[view.state.variant]}`,
  };

  function read() {
    view.photo = photos[Math.min(model.get("photo"), photos.length - 1)];
    const [first, last] = model.get("layers");
    view.state = {
      t: Math.min(model.get("target"), view.photo.targets.length - 1),
      norm: model.get("norm"),
      variant: model.get("variant"),
      alpha: model.get("alpha"),
      muted: model.get("muted"),
      first,
      last,
    };
    view.state.map = view.map({});
  }

  const parts = model.get("show").map((name) => PANELS[name](view));
  const main = parts.at(-1); // its code and its words stand under the pictures
  const live = h("p", { class: "gmar-live", "aria-live": "polite", role: "status" });
  const note = h("p", { class: "gmar-note" });
  const code = h("code");
  const copied = h("span", { role: "status" });
  const copy = (text, what, otherwise) =>
    (navigator.clipboard?.writeText(text) ?? Promise.reject()).then(
      () => (copied.textContent = `${what} copied.`),
      () => (copied.textContent = otherwise),
    );
  const copyCode = button("Copy as Python", () => copy(code.textContent, "Code", "Select the text and copy it."));
  const copyLink = button("Copy link", () => {
    history.replaceState(null, "", linkOf(model, began));
    copy(location.href, "Link", "The link stands in the address bar.");
  });
  // a notebook's own address would not bring these pictures back
  const published = document.querySelector('script[type="application/vnd.jupyter.widget-state+json"]') !== null;
  copyLink.hidden = !published;
  el.classList.add("gmar", "mathjax_ignore", "tex2jax_ignore"); // a label with dollar signs is no formula
  el.replaceChildren(
    ...parts.map((part) => part.el),
    live,
    h(
      "details",
      { class: "gmar-code" },
      h("summary", {}, published ? "As code, as a link" : "As code"),
      h("pre", { tabindex: 0 }, code),
      h("div", { class: "gmar-buttons" }, copyCode, copyLink, copied),
    ),
    note,
  );

  function draw() {
    waiting = 0;
    const began = performance.now();
    read();
    const { photo, state } = view;
    if (model.get("target_names").join() !== photo.target_names.join())
      view.set({ target_names: photo.target_names, target: 0 });
    for (const part of parts) part.update();
    code.textContent = `${photo.preamble ?? ""}${main.code?.() ?? `map = ${stateCode(view, state.norm)}`}\n`;
    copied.textContent = "";
    note.textContent = main.code
      ? ""
      : photo.note ??
        `The page keeps ${photo.light ? "these maps in two bytes a number" : "attention in one byte an entry"}. ` +
        `That moves the maps by at most ${(100 * photo.error).toFixed(photo.light ? 3 : 1)} % of their range.`;
    el.dataset.checksum = checksum(state.map).toFixed(7);
    el.dataset.ms = (performance.now() - began).toFixed(2);
    const strongest = place(photo, highestFirst(state.map)[0]);
    speak(main.say?.() ?? `Strongest patch: ${strongest}. ${view.name()}; ${view.settings()}.`);
  }

  // When the hand rests, not at every step of a drag.
  function speak(words) {
    clearTimeout(speaking);
    const say = () => {
      if (live.textContent !== words) live.textContent = words;
    };
    speaking = setTimeout(say, live.textContent ? 400 : 0);
  }

  for (const trait of TRAITS) {
    model.on(`change:${trait}`, view.schedule);
    view.cleanups.push(() => model.off(`change:${trait}`, view.schedule));
  }
  const began = start(model);
  const follow = () => {
    const said = published && fromLink(model, photos, began);
    if (!said) return;
    view.set(said);
    setTimeout(() => el.scrollIntoView({ block: "center" }), 300); // after the page's own pictures took their places
  };
  addEventListener("hashchange", follow);
  view.cleanups.push(() => removeEventListener("hashchange", follow));
  follow();
  draw();
  view.cleanups.push(nameHandles(el));
  return () => {
    cancelAnimationFrame(waiting);
    clearTimeout(speaking);
    view.cleanups.forEach((f) => f());
  };
}

// The handles of ipywidgets' sliders have no accessible name: give each its label's, as soon as it is there.
function nameHandles(el) {
  const label = () => {
    const box = el.closest(".gmar-explorer");
    for (const slider of box?.querySelectorAll(".widget-slider, .widget-hslider") ?? []) {
      const text = slider.querySelector(".widget-label")?.textContent.trim();
      const handles = slider.querySelectorAll(".noUi-handle, .ui-slider-handle");
      handles.forEach((handle, i) => {
        const words = handles.length > 1 ? `${text}, ${["first", "last"][i]}` : text;
        if (handle.getAttribute("aria-label") !== words) handle.setAttribute("aria-label", words);
      });
      const readout = slider.querySelector(".widget-readout");
      if (readout && !readout.hasAttribute("aria-label")) {
        readout.setAttribute("role", "textbox");
        readout.setAttribute("aria-label", `${text}, value`);
      }
    }
  };
  const observer = new MutationObserver(label);
  const timer = setTimeout(() => {
    // the box around the view is put together after the view
    const box = el.closest(".gmar-explorer");
    if (box)
      observer.observe(box, { childList: true, subtree: true, attributes: true, attributeFilter: ["aria-label"] });
    label();
  });
  return () => {
    clearTimeout(timer);
    observer.disconnect();
  };
}
