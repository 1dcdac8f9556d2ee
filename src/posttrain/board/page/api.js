// Requests to the server of this page, and whether it answers at all.

const KEY = "posttrain-board-key";

/** The message of a refusal is the server's own line; a server that is gone has `gone` set. */
class Refusal extends Error {
  constructor(message, gone = false) {
    super(message);
    this.gone = gone;
  }
}

/** Query text of a list of [name, value]; what is null or undefined is left out. */
function query(pairs) {
  const params = new URLSearchParams();
  for (const [name, value] of pairs) {
    if (value !== null && value !== undefined) params.append(name, value);
  }
  return params.toString();
}

export const get = (path, pairs = [], signal = undefined) =>
  ask(pairs.length ? `${path}?${query(pairs)}` : path, {signal});

export const post = (path, body) =>
  ask(path, {
    method: "POST",
    body: JSON.stringify(body),
    headers: {"Content-Type": "application/json", "X-Board-Key": sessionStorage.getItem(KEY) ?? ""},
  });

async function ask(path, options) {
  let response, body;
  try {
    response = await fetch(path, options);
    body = await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("the server does not answer", true);
  }
  if (!response.ok) throw new Refusal(body?.error ?? `the server answered ${response.status}`);
  return body;
}

/** Keep the key of the printed address for this tab, and take it out of the address. */
export function takeKey() {
  const found = /^#key=([^&]+)/.exec(location.hash);
  if (!found) return;
  sessionStorage.setItem(KEY, decodeURIComponent(found[1]));
  history.replaceState(null, "", location.pathname + location.search);
}

export const hasKey = () => Boolean(sessionStorage.getItem(KEY));
