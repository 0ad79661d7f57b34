// The card's live view: the explorer's own modules stand above this text (maths, draw, photo), so that a map is computed
// here as it is in the book. It opens a photo when its details do.

const packed = JSON.parse(document.getElementById("data").textContent);

const decoded = (text) => {
  const raw = atob(text);
  return new DataView(Uint8Array.from(raw, (c) => c.charCodeAt(0)).buffer);
};

// What unpack reads of a widget's model, from the page's own data.
const asModel = (data) => ({
  get: (name) => (name === "info" ? data.info : name in data ? decoded(data[name]) : new DataView(new ArrayBuffer(0))),
});

const labelled = (text, control) => h("label", {}, text, control);
const options = (names) => names.map((name, i) => h("option", { value: i }, name));
const select = (names, update) => h("select", { onchange: update }, ...options(names));
const slider = (max, step, value, update) => h("input", { type: "range", min: 0, max, step, value, oninput: update });

async function live(el) {
  const photo = await unpack(asModel(packed[Number(el.dataset.photo)]));
  const rolled = ["Rollout and GMAR, by the settings", ...photo.methods];
  const canvas = picture();
  const say = h("p", { class: "note", "aria-live": "polite" });
  const method = select(rolled, update);
  const target = select(photo.target_names, update);
  const norm = select(["L1", "L2", "none: rollout"], update);
  const variant = select(VARIANTS, update);
  const alpha = slider(4, 0.05, 1, update);
  const opacity = slider(1, 0.05, 0.65, update);
  const own = [labelled("α", alpha), labelled("Norm", norm), labelled("Variant", variant)];

  function update() {
    const t = Number(target.value || 0);
    const m = Number(method.value || 0);
    const settings = { t, norm: Number(norm.value), variant: Number(variant.value), alpha: Number(alpha.value) };
    const map = m ? photo.map(t, m - 1) : photo.mapAt(settings);
    for (const label of own) label.hidden = m > 0;
    paint(canvas, photo, map, Number(opacity.value));
    const strongest = place(photo, highestFirst(map)[0]);
    const words = m
      ? photo.methods[m - 1]
      : `α = ${settings.alpha.toFixed(2)}, ${["L1", "L2", "no head weights"][settings.norm]}, ${VARIANTS[settings.variant]}`;
    say.textContent = `Why ${photo.words[t]}? ${words}. Strongest patch: ${strongest}.`;
    canvas.setAttribute("aria-label", say.textContent);
    el.dataset.checksum = checksum(map).toFixed(7);
  }

  el.append(
    h(
      "div",
      { class: "controls" },
      labelled("Map", method),
      labelled("Class", target),
      ...own,
      labelled("Opacity", opacity),
    ),
    h("div", { class: "board" }, canvas),
    legend("low", "high"),
    say,
  );
  update();
}

for (const el of document.querySelectorAll("details.live"))
  el.addEventListener("toggle", () => live(el), { once: true });
