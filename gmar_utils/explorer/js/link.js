// The view's state in the page's address: #explorer=NAME&alpha=2.5&layers=2-5&muted=3.1_3.2. Only what differs from the
// start is written. What an address says is checked before it is used: it comes from anywhere.

export const TRAITS =
  "photo target norm variant alpha layers opacity muted query look left right method step".split(" ");
const FRACTIONS = ["alpha", "opacity"];

const pair = (separator) => ([a, b]) => `${a}${separator}${b}`;
const write = (trait, value) =>
  trait === "muted" ? value.map(pair(".")).join("_") : trait === "layers" ? pair("-")(value) : String(+value.toFixed(4));

export const start = (model) => Object.fromEntries(TRAITS.map((trait) => [trait, write(trait, model.get(trait))]));

export function linkOf(model, began) {
  const parts = TRAITS.map((trait) => [trait, write(trait, model.get(trait))]).filter(([k, text]) => text !== began[k]);
  return `${location.href.split("#")[0]}#${[["explorer", model.get("link")], ...parts].map(pair("=")).join("&")}`;
}

// The traits that the address sets for this view, all others as at the start; null when it speaks of another view.
export function fromLink(model, photos, began) {
  const said = new URLSearchParams(location.hash.slice(1));
  if (said.get("explorer") !== model.get("link")) return null;
  const number = (trait, text) => {
    const value = text === null || text === "" ? NaN : Number(text);
    const [low, high] = limits[trait];
    return value >= low && value <= high && (FRACTIONS.includes(trait) || Number.isInteger(value)) ? value : null;
  };
  const pairs = (text, separator, [highA, highB]) =>
    (text || "")
      .split("_")
      .map((one) => one.split(separator).map(Number))
      .filter((p) => p.length === 2 && p.every((x, k) => Number.isInteger(x) && x >= 1 && x <= [highA, highB][k]));
  const last = photos.length - 1;
  const chosen = Number(said.get("photo") ?? began.photo);
  const photo = photos[Number.isInteger(chosen) && chosen >= 0 && chosen <= last ? chosen : 0];
  const { L, H, R, C, targets, methods, fractions } = photo;
  const limits = {
    photo: [0, last],
    target: [0, targets.length - 1],
    norm: [0, 2],
    variant: [0, 2],
    alpha: [0, 10],
    opacity: [0, 1],
    query: [-1, R * C - 1],
    look: [1, L],
    left: [0, methods.length + 1],
    right: [0, methods.length + 1],
    method: [0, methods.length - 1],
    step: [0, Math.max(fractions.length - 1, 0)],
  };
  const found = { target_names: photo.target_names };
  for (const trait of TRAITS) {
    const text = said.get(trait) ?? began[trait];
    if (trait === "muted") found.muted = pairs(text, ".", [L, H]);
    else if (trait === "layers") found.layers = pairs(text, "-", [L, L]).find(([a, b]) => a <= b) ?? [1, L];
    else found[trait] = number(trait, text) ?? number(trait, began[trait]) ?? limits[trait][0];
  }
  return found;
}
