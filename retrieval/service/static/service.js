// The service over HTTP: paths beside this page, the token, and errors in plain words.

const BASE = new URL(".", document.baseURI); // the page may stand behind a proxy, under a prefix
const TOKEN = "cbir-token";
const KEEP = 256 * 2 ** 20; // bytes of volumes kept for going back and forth
export const BEHIND_ORTHANC = BASE.pathname.endsWith("/cbir/ui/");

export class ServiceError extends Error {
  constructor(message, { status = 0, again = false } = {}) {
    super(message);
    this.status = status;
    this.again = again; // worth trying again as it is
  }
}

/** Set by the page: asks for a token, promises it or null. */
export const door = { ask: async () => null };

let asking = null; // many requests meet one dialog

/** A request; a refused token is asked for and the request sent again. */
export async function call(path, options = {}) {
  const headers = {};
  const token = sessionStorage.getItem(TOKEN);
  if (token) headers.Authorization = `Bearer ${token}`;
  let { body } = options;
  if (BEHIND_ORTHANC && body instanceof FormData) {
    // Orthanc keeps multipart/form-data for its own upload page: the plugin takes it under another name
    const packed = new Response(body);
    headers["Content-Type"] = packed.headers.get("Content-Type").replace("form-data", "x-form-data");
    body = await packed.blob();
  }
  let response;
  try {
    response = await fetch(new URL(path.replace(/^\/+/, ""), BASE), { ...options, body, headers, redirect: "error" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServiceError("The service does not answer. Is it running?", { again: true });
  }
  if (response.ok) return response;
  if (response.status === 401) {
    if (token === sessionStorage.getItem(TOKEN)) {
      asking ??= door.ask(Boolean(token)).finally(() => (asking = null));
      const given = await asking;
      if (!given) throw new ServiceError("This service needs an access token.", { status: 401, again: true });
      sessionStorage.setItem(TOKEN, given);
    }
    return call(path, options);
  }
  throw new ServiceError(await words(response), { status: response.status, again: [429, 502, 503, 504].includes(response.status) });
}

export const json = async (path, options) => (await call(path, options)).json();

export function form(fields) {
  const given = fields.filter(([, value]) => value !== null && value !== "");
  if (!given.some(([, value]) => value instanceof Blob)) return { method: "POST", body: new URLSearchParams(given) };
  const body = new FormData();
  for (const [name, value] of given) body.append(name, value);
  return { method: "POST", body };
}

const kept = new Map(); // path to bytes, least recently used first

/** The bytes of a volume. */
export async function bytes(path) {
  const held = kept.get(path) ?? (await (await call(path)).arrayBuffer());
  kept.delete(path);
  kept.set(path, held);
  let total = [...kept.values()].reduce((sum, one) => sum + one.byteLength, 0);
  for (const [old, one] of kept) {
    if (total <= KEEP || old === path) break;
    kept.delete(old);
    total -= one.byteLength;
  }
  return held;
}

async function words(response) {
  let detail = "";
  try {
    detail = (await response.json()).detail;
  } catch {
    // a proxy answers in its own way
  }
  if (Array.isArray(detail)) detail = detail.map((one) => one.msg).join("; ");
  detail = sentence(detail);
  const later = Number(response.headers.get("Retry-After"));
  switch (response.status) {
    case 403:
      return `Your token does not allow this. ${detail}`.trim();
    case 413:
      return `This is more than the service takes. ${detail}`.trim();
    case 429:
    case 503:
      return `${detail || "The service is busy."} Try again ${later ? `in ${later} s` : "in a moment"}.`;
    default:
      return detail || `The service failed (${response.status}).`;
  }
}

/** A reason as the service gives it, "is no image; check it", as a sentence. */
function sentence(detail) {
  if (typeof detail !== "string" || !detail) return "";
  const whole = /^(is|has|holds|does|was|cannot) /.test(detail) ? `The scan ${detail}` : detail;
  return whole[0].toUpperCase() + whole.slice(1) + (/[.!?]$/.test(whole) ? "" : ".");
}
