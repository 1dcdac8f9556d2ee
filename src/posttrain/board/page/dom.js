// Elements. Every text from a run goes in through append(), which never parses it as HTML.

export const $ = (selector, root = document) => root.querySelector(selector);

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") {
      for (const [key, text] of Object.entries(value)) node.style.setProperty(key, text);
    } else if (name === "value") node.value = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...present(children));
  return node;
}

/** Children without the ones left out (null, undefined, false); nested lists are flattened. */
const present = (children) =>
  children
    .flat(Infinity)
    .filter((child) => child !== null && child !== undefined && child !== false);

export const el = (tag, attributes = {}, ...children) =>
  fill(document.createElement(tag), attributes, children);

export const svg = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

/** Replace what is in a node, but touch nothing if it already shows the same text. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export const put = (node, ...children) => node.replaceChildren(...present(children));

const keys = new WeakMap();

/**
 * Fill a node again only if its key has changed: the page is brought up to date every two seconds,
 * and what is made again loses the focus or closes an open list. The focus returns to the same role.
 */
export function putIf(node, key, make) {
  if (keys.get(node) === key) return;
  keys.set(node, key);
  const role = node.contains(document.activeElement)
    ? document.activeElement.dataset.role
    : undefined;
  put(node, make());
  if (role !== undefined) node.querySelector(`[data-role="${CSS.escape(role)}"]`)?.focus();
}

export const button = (text, onclick, attributes = {}) =>
  el("button", {type: "button", onclick, ...attributes}, text);

const option = (value, text, chosen) => el("option", {value, selected: value === chosen}, text);

/** A labelled select whose options are [value, text]. */
export function choice(label, options, chosen, onchange, attributes = {}) {
  const select = el(
    "select",
    {
      "aria-label": label,
      onchange: (event) => onchange(event.target.value),
      ...attributes,
    },
    options.map(([value, text]) => option(value, text, chosen)),
  );
  return el("label", {class: "field"}, el("span", {}, label), select);
}

export function toggle(label, checked, onchange, attributes = {}) {
  const box = el("input", {
    type: "checkbox",
    onchange: (event) => onchange(event.target.checked),
    ...attributes,
  });
  box.checked = checked;
  return el("label", {class: "check"}, box, label);
}

/** Call once the typing pauses, so that a keystroke never waits for the work. */
export function later(work, milliseconds) {
  let timer = 0;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => work(...values), milliseconds);
  };
}

/** Tell a screen reader what has changed. */
export const announce = (text) => setText($("#status"), text);

/** A text that is cut after some lines, with a button that shows all of it. */
export function clipped(text, kind, lines = 4) {
  const box = el("div", {class: `text ${kind}`, dir: "auto"}, text);
  const long = text.length > 90 * lines || text.split("\n").length > lines;
  if (!long) return box;
  box.style.setProperty("--lines", lines);
  box.classList.add("cut");
  const more = button(
    "Show all",
    () => {
      const open = box.classList.toggle("cut") === false;
      more.textContent = open ? "Show less" : "Show all";
      more.setAttribute("aria-expanded", String(open));
    },
    {class: "link", "aria-expanded": "false"},
  );
  return el("div", {}, box, more);
}

export const empty = (title, ...lines) =>
  el(
    "div",
    {class: "empty"},
    el("strong", {}, title),
    lines.map((line) => el("p", {}, line)),
  );

/** A box that scrolls sideways on its own, so that the page does not. */
export const scrolling = (label, ...children) =>
  el("div", {class: "card scroll", tabindex: 0, role: "region", "aria-label": label}, children);

/** Add items in portions as the reader scrolls: thousands of rows would make typing slow. */
export function inPortions(host, items, make, portion = 60, tag = "div") {
  let shown = 0;
  const end = el(tag, {class: "portion-end", "aria-hidden": "true"});
  const more = () => {
    end.before(...items.slice(shown, shown + portion).map(make));
    shown += portion;
    if (shown >= items.length) {
      observer.disconnect();
      end.remove();
    }
  };
  const observer = new IntersectionObserver(
    (entries) => {
      if (entries.some((entry) => entry.isIntersecting)) more();
    },
    {rootMargin: "600px"},
  );
  put(host, end);
  more();
  if (shown < items.length) observer.observe(end);
}
