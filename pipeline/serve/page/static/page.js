// Nothing of the server's goes into the page but as text: an item id may be `<script>`.

const PAGE_SIZE = 20;
const element = (id) => document.getElementById(id);
const calm = matchMedia("(prefers-reduced-motion: reduce)");

let model;
let state; // what the address says: {items, k, hideSeen}
let shown = { search: "", offset: 0, total: 0 };
let placeBefore = null; // of each id in the list before this one
let asking;
let searching;
let typing;
const labels = new Map(); // {title, image} by item id, of the table that `pipeline serve` was given

function make(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

function learn(answer) {
  for (const [item, label] of Object.entries(answer.labels)) labels.set(item, label);
}

const nameOf = (item) => labels.get(item)?.title ?? item;
const hint = (item) => (nameOf(item) === item ? item : `${nameOf(item)} (${item})`);

// Picture, name and id; an id without a name stands in its place.
function face(item) {
  const { title, image } = labels.get(item) ?? {};
  const made = make("span", "face");
  if (model.labels.images) made.append(picture(image));
  const words = make("span", "words");
  if (title) words.append(make("span", "title", title));
  words.append(make("span", "id", item));
  made.append(words);
  return made;
}

function picture(address) {
  const frame = make("span", "picture");
  if (!address) return frame;
  const image = make("img", "");
  image.alt = "";
  image.loading = "lazy";
  image.referrerPolicy = "no-referrer";
  image.addEventListener("error", () => image.remove());
  image.src = address;
  frame.append(image);
  return frame;
}

const count = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;

async function ask(path, signal, body) {
  const sent = body && {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  };
  let response;
  try {
    response = await fetch(path, { signal, ...sent });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Does `pipeline serve` still run?");
  }
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

function tell(error) {
  if (error.name === "AbortError") return;
  element("error").textContent = error.message;
  element("error").hidden = false;
}

// The address holds the session: it can be passed on, and the back button takes a click back.

function fromAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  const k = Number(given.get("k"));
  return {
    items: given.getAll("i").filter(Boolean).slice(-model.most_items),
    k: Number.isInteger(k) && k >= 1 && k <= model.max_k ? k : model.default_k,
    hideSeen: given.has("seen") ? given.get("seen") === "hide" : model.filter_seen,
  };
}

function go(changes, { replace = false } = {}) {
  const { items, k, hideSeen } = { ...state, ...changes };
  const address = new URLSearchParams(items.map((item) => ["i", item]));
  if (k !== model.default_k) address.set("k", k);
  if (hideSeen !== model.filter_seen) address.set("seen", hideSeen ? "hide" : "keep");
  const url = location.pathname + (address.size ? `#${address}` : "");
  if (replace) history.replaceState(null, "", url);
  else history.pushState(null, "", url);
  followAddress();
}

function followAddress() {
  state = fromAddress();
  showSession();
  recommend();
}

const add = (item) => go({ items: [...state.items, item] });

// Catalogue

async function loadModel() {
  model = await ask("api/model");
  document.title = element("name").textContent = model.name;
  const size = count(model.catalogue_items, "item");
  const { titles, images } = model.labels;
  const parts = [size, `version ${model.version} of the export`];
  if (titles) parts.splice(1, 0, `${titles.toLocaleString("en")} with a name`);
  if (images) parts.splice(-1, 0, `${images.toLocaleString("en")} with a picture`);
  element("facts").textContent = parts.join(" · ");
  element("search").placeholder = titles ? "Search names and item ids" : "Search item ids";
  element("k").max = model.max_k;
  const others = model.other_columns;
  element("columns").hidden = !others.length;
  element("columns").textContent =
    `The model reads more than item ids: ${others.join(", ")}. This page does not send them: ` +
    "what describes items is that of the catalogue, the rest counts as missing.";
}

async function loadItems(search, offset) {
  searching?.abort();
  searching = new AbortController();
  const asked = new URLSearchParams({ search, offset, limit: PAGE_SIZE });
  try {
    const answer = await ask(`api/items?${asked}`, searching.signal);
    learn(answer);
    shown = { search, offset, total: answer.total };
    element("items").replaceChildren(...answer.items.map(itemRow));
    if (!answer.total) {
      const what = model.labels.titles ? "name or item id" : "item id";
      element("items").append(make("li", "nothing", `No ${what} holds “${search}”.`));
    }
    const last = offset + answer.items.length;
    const size = answer.total.toLocaleString("en");
    element("range").textContent = answer.total ? `${offset + 1}–${last} of ${size}` : "";
    element("previous").disabled = offset === 0;
    element("next").disabled = last >= answer.total;
    markChosen();
  } catch (error) {
    tell(error);
  }
}

function itemRow(item) {
  const button = make("button", "");
  button.type = "button";
  button.dataset.id = item;
  button.title = hint(item);
  button.append(face(item));
  button.addEventListener("click", () => add(item));
  const row = make("li", "");
  row.append(button);
  return row;
}

function markChosen() {
  const chosen = new Set(state?.items);
  for (const button of element("items").querySelectorAll("button")) {
    button.classList.toggle("chosen", chosen.has(button.dataset.id));
  }
}

// Session

function showSession() {
  const { items } = state;
  element("chips").replaceChildren(...items.map(chip));
  element("session-empty").hidden = items.length > 0;
  element("clear").hidden = items.length === 0;
  element("k").value = state.k;
  element("seen").checked = state.hideSeen;
  markChosen();
}

function chip(item, place) {
  const text = face(item);
  text.title = hint(item);
  const button = make("button", "", "×");
  button.type = "button";
  button.setAttribute("aria-label", `Remove ${nameOf(item)}, number ${place + 1} of the session`);
  button.addEventListener("click", () => {
    go({ items: state.items.toSpliced(place, 1) });
    const buttons = element("chips").querySelectorAll("button");
    (buttons[Math.min(place, buttons.length - 1)] ?? element("search")).focus();
  });
  const row = make("li", "");
  row.dataset.id = item;
  row.append(text, button);
  return row;
}

function nameSession() {
  for (const row of element("chips").children) {
    const text = face(row.dataset.id);
    text.title = hint(row.dataset.id);
    row.firstChild.replaceWith(text);
  }
}

function markUnknown(unknown) {
  for (const row of element("chips").children) {
    const is = unknown.includes(row.dataset.id);
    row.classList.toggle("unknown", is);
    if (is) row.firstChild.title = `${row.dataset.id} is not in the catalogue`;
  }
}

// Recommendations

async function recommend() {
  asking?.abort();
  const mine = (asking = new AbortController());
  const list = element("list");
  element("error").hidden = true;
  if (!state.items.length) {
    placeBefore = null;
    list.replaceChildren();
    list.setAttribute("aria-busy", "false");
    element("status").textContent = "The list appears with the first item of the session.";
    return;
  }
  list.setAttribute("aria-busy", "true");
  const begin = performance.now();
  try {
    const answer = await ask("api/recommend", mine.signal, {
      items: state.items,
      k: state.k,
      filter_seen: state.hideSeen,
    });
    showList(answer, performance.now() - begin);
    if (answer.version !== model.version) await renew();
  } catch (error) {
    tell(error);
  } finally {
    if (asking === mine) list.setAttribute("aria-busy", "false");
  }
}

async function renew() {
  await loadModel();
  await loadItems(shown.search, 0);
}

function showList(answer, whole) {
  const { recommendations, milliseconds, unknown } = answer;
  const list = element("list");
  const focused = list.contains(document.activeElement);
  const tops = new Map([...list.children].map((row) => [row.dataset.id, row.offsetTop]));
  learn(answer);
  const scores = recommendations.map((entry) => entry.score);
  const rows = recommendations.map((entry, place) => listRow(entry, place, scores));
  list.replaceChildren(...rows);
  nameSession();
  move(rows, tops);
  markUnknown(unknown);
  const fresh = rows.filter((row) => row.classList.contains("fresh")).length;
  const parts = [count(rows.length, "item")];
  if (placeBefore) parts.push(`${fresh} new`);
  parts.push(`${milliseconds.toFixed(1)} ms`);
  element("status").textContent = parts.join(" · ");
  element("status").title = `${whole.toFixed(1)} ms with the way to this page`;
  if (!rows.length) element("status").textContent = "No item is left to recommend.";
  placeBefore = new Map(recommendations.map((entry, place) => [entry.item_id, place]));
  if (focused) (list.querySelector("button") ?? element("search")).focus({ preventScroll: true });
}

function listRow({ item_id: item, score }, place, scores) {
  const row = make("li", "");
  row.dataset.id = item;
  const before = placeBefore?.get(item);
  let change = "";
  if (placeBefore && before === undefined) {
    row.className = "fresh";
    change = "new";
  } else if (placeBefore && before !== place) {
    change = before > place ? `▲ ${before - place}` : `▼ ${place - before}`;
  }
  const button = make("button", state.items.includes(item) ? "chosen" : "");
  button.type = "button";
  button.title = hint(item);
  button.dataset.id = item;
  const bar = make("span", "bar");
  const filled = make("i", "");
  // the best fills the bar and the last a tenth of it: scores have no zero of their own
  const [best, least] = [scores[0], scores.at(-1)];
  filled.style.width = `${best > least ? 10 + (90 * (score - least)) / (best - least) : 100}%`;
  bar.append(filled);
  button.append(
    make("span", "rank", String(place + 1)),
    face(item),
    make("span", "change", change),
    make("span", "score", score.toFixed(3)),
    bar,
  );
  button.addEventListener("click", () => add(item));
  row.append(button);
  return row;
}

// Rows that stay slide to their new place, others fade in.
function move(rows, tops) {
  if (calm.matches || !tops.size) return;
  for (const row of rows) {
    const before = tops.get(row.dataset.id);
    const from =
      before === undefined
        ? { opacity: 0, transform: "translateX(1rem)" }
        : { transform: `translateY(${before - row.offsetTop}px)` };
    row.animate([from, { opacity: 1, transform: "none" }], { duration: 300, easing: "ease-out" });
  }
}

// What one can do

element("search").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(() => loadItems(element("search").value.trim(), 0), 120);
});
element("search").addEventListener("keydown", (event) => {
  const [first] = element("items").querySelectorAll("button");
  if (event.key === "Enter" && first && shown.search === event.target.value.trim()) first.click();
  if (event.key === "ArrowDown" && first) {
    event.preventDefault();
    first.focus();
  }
});
for (const name of ["items", "list"]) {
  element(name).addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const buttons = [...element(name).querySelectorAll("button")];
    buttons[buttons.indexOf(document.activeElement) + step]?.focus();
  });
}
document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.target.matches("input:not([type=checkbox])")) return;
  event.preventDefault();
  element("search").focus();
});
element("previous").addEventListener("click", () =>
  loadItems(shown.search, Math.max(0, shown.offset - PAGE_SIZE)),
);
element("next").addEventListener("click", () => loadItems(shown.search, shown.offset + PAGE_SIZE));
element("clear").addEventListener("click", () => {
  go({ items: [] });
  element("search").focus();
});
element("k").addEventListener("change", (event) => {
  const wanted = Math.round(Number(event.target.value)) || model.default_k;
  go({ k: Math.min(model.max_k, Math.max(1, wanted)) }, { replace: true });
});
element("seen").addEventListener("change", (event) =>
  go({ hideSeen: event.target.checked }, { replace: true }),
);
addEventListener("popstate", followAddress);
// a newer export may have come while the page was out of sight
document.addEventListener("visibilitychange", async () => {
  if (document.hidden || !model) return;
  try {
    const before = model.version;
    const now = await ask("api/model");
    if (now.version !== before) {
      await renew();
      recommend();
    }
  } catch (error) {
    tell(error);
  }
});

try {
  await loadModel();
  followAddress();
  await loadItems("", 0);
} catch (error) {
  tell(error);
}
