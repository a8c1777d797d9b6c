// The page. What is asked stands in the address after #, so that back, forward and links work:
//
//   #series=UID | #study=UID | #query=ID | #like=CASE&like=CASE   and   &k=20&where=label=value&by=class|appearance|similarity&region=x0,y0,x1,y1@slice&hit=CASE
//
// Whatever comes from the service is put into the page as text, never as markup.

import { BEHIND_ORTHANC, bytes, call, door, form, json, ServiceError } from "./service.js";
import { Pane } from "./pane.js";
import { Tiles } from "./tiles.js";

const K = [5, 10, 20, 50];
const FEW = 12; // a column with more values is no filter
const FIRST = { level: 0.5, width: 1 };
const WHOLE = { x: 0, y: 0, zoom: 1 };

const $ = (selector) => document.querySelector(selector);
const panes = { query: new Pane($("#query-pane"), "Query"), hit: new Pane($("#hit-pane"), "Hit") };
const tiles = { query: new Tiles(panes.query, bytes), hit: new Tiles(panes.hit, bytes) };
const answers = new Map(); // question to answer
const sent = new Map(); // series or study of the PACS to the id of its kept query
const filed = new Map(); // question to the PACS's id of the report on it; null while that is on its way
const state = {
  question: "", // the one whose answer is shown
  answer: null,
  hit: null,
  marked: new Map(), // case to hit
  info: null,
  asking: null, // stops the request that is under way
  matched: [0, 0], // slices of both sides that belong together
  showing: 0, // counts up, so that what comes late is dropped
  box: null, // drawn, not yet asked
};

function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

const plain = (name) => name.replaceAll("_", " ");
const percent = (share) => `${Math.round(share * 100)}\u00a0%`;

// ---- questions -----------------------------------------------------------------------------------

/** Names and values of a question, those that are given, in the order of the names. */
const pairs = (question, ...names) => names.flatMap((name) => question.getAll(name).map((value) => [name, value]));

/** The address of a question, always in the same order. */
const address = (question) =>
  new URLSearchParams(pairs(question, "series", "study", "query", "like", "k", "where", "by", "region")).toString();

/** Go to the present question with changes: name to a value, a list of values, or null. */
function go(changes, from = here()) {
  for (const [name, value] of Object.entries(changes)) {
    from.delete(name);
    for (const one of [value ?? []].flat()) from.append(name, one);
  }
  const next = address(from);
  if (`#${next}` === location.hash) visit();
  else location.hash = next;
}

const here = () => new URLSearchParams(location.hash.slice(1));

/** Show what the address asks for. */
async function visit() {
  const question = here();
  const key = address(question);
  state.asking?.abort();
  complain(null);
  filters();
  if (key === state.question && state.answer) return choose(question.get("hit"), false);
  try {
    const answer = key ? (answers.get(key) ?? (await ask(question))) : null;
    if (key !== address(here())) return;
    answers.set(key, answer);
    state.question = key;
    show(answer);
    if (answer) choose(question.get("hit"), true);
  } catch (error) {
    if (error.name === "AbortError" || key !== address(here())) return;
    state.question = key;
    show(null);
    complain(error, visit);
  }
}

async function ask(question) {
  const what = question.has("study") ? "study" : "series";
  const uid = question.get(what);
  const kept = question.get("query") ?? sent.get(uid);
  const fields = pairs(question, "k", "where", "by", "region", "like");
  const wait = uid && !kept ? `Fetching the ${what} and comparing…` : "Comparing…";
  return busy(wait, async (signal) => {
    if (kept) {
      try {
        return await json(`queries/${encodeURIComponent(kept)}`, { ...form(fields), signal });
      } catch (error) {
        if (error.status !== 404) throw error;
        if (!uid) throw new ServiceError("The service no longer keeps this scan. Open it again.");
      }
    }
    const answer = await json("query", { ...form(uid ? [[what, uid], ...fields] : fields), signal });
    if (uid && answer.query.id) sent.set(uid, answer.query.id);
    return answer;
  });
}

async function upload(files) {
  if (files.length !== 1) {
    if (files.length) complain(new ServiceError("One scan at a time, please; put the files of a DICOM series into one .zip."));
    return;
  }
  const [file] = files;
  const question = new URLSearchParams();
  const k = here().get("k");
  if (k) question.set("k", k);
  const by = here().get("by");
  if (by) question.set("by", by);
  complain(null);
  try {
    const size = Math.max(file.size / 2 ** 20, 0.1).toFixed(1);
    const answer = await busy(`Sending ${size} MiB and comparing…`, (signal) =>
      json("query", { ...form([["file", file], ["k", k], ["by", by]]), signal }),
    );
    question.set("query", answer.query.id);
    answers.set(address(question), answer);
    go({}, question);
  } catch (error) {
    if (error.name !== "AbortError") complain(error, () => upload(files));
  }
}

/** Run work that Escape can stop, with words in the status line. */
async function busy(text, work) {
  state.asking?.abort();
  const controller = (state.asking = new AbortController());
  $("#status").textContent = text;
  document.body.classList.add("busy");
  try {
    return await work(controller.signal);
  } finally {
    if (state.asking === controller) {
      state.asking = null;
      $("#status").textContent = "";
      document.body.classList.remove("busy");
    }
  }
}

function complain(error, again = null) {
  const bar = $("#alert");
  bar.hidden = !error;
  if (!error) return;
  if (!(error instanceof ServiceError)) console.error(error);
  bar.querySelector("p").textContent = error.message;
  const retry = bar.querySelector(".retry");
  retry.hidden = !(again && error.again);
  retry.onclick = () => {
    bar.hidden = true;
    again();
  };
}

// ---- an answer -----------------------------------------------------------------------------------

function show(answer) {
  state.answer = answer;
  state.hit = null;
  state.marked.clear();
  draw(null);
  filing();
  const asked = here();
  const none = !answer;
  $("#start").hidden = !none;
  $("#images").hidden = none;
  $("#hits").hidden = none;
  $("#evidence").hidden = none || !Object.keys(answer.evidence).length;
  $("#notes").hidden = none || !answer.notes?.length;
  $("#asked").replaceChildren();
  $("#hits ol").replaceChildren();
  more();
  if (none) return;

  const { query } = answer;
  const facts = [query.sequence?.replaceAll("+", " + "), query.slices === 1 ? "1 slice" : `${query.slices} slices`];
  const like = asked.getAll("like").length;
  if (like) facts.unshift(like > 1 ? `like ${like} marked cases` : "like the marked case");
  $("#asked").append(facts.filter(Boolean).join(" · "));
  if (query.region) {
    const clear = make("button", { type: "button", textContent: "whole slices again" });
    clear.addEventListener("click", () => go({ region: null, hit: null }));
    $("#asked").append(` · region on slice ${query.region_slice} `, clear);
  }
  $("#region").disabled = !query.id;
  $("#evidence .filtered").hidden = !asked.has("where");
  $("#evidence .columns").replaceChildren(...Object.entries(answer.evidence).map(([name, vote]) => evidence(name, vote)));
  $("#notes ul").replaceChildren(...(answer.notes ?? []).map((note) => make("li", { textContent: note })));
  $("#hits ol").replaceChildren(...answer.hits.map(card));
  $("#hits-title").textContent = answer.hits.length ? "Cases" : "No case matches";
  if (!answer.hits.length) {
    panes.query.say("");
    panes.hit.say("No case matches. Show other labels.");
  }
}

function evidence(name, vote) {
  const share = (value) => {
    const inside = vote.set.includes(value);
    const p = vote.probabilities[value];
    const prior = vote.prior[value];
    const bar = make("b");
    bar.style.width = `${p * 100}%`;
    const mark = prior === undefined ? null : make("i");
    if (mark) mark.style.left = `${prior * 100}%`;
    return make(
      "li",
      { className: inside ? "in" : "" },
      make("strong", { textContent: value }),
      make("span", { textContent: percent(p) }),
      make("small", { textContent: prior === undefined ? "" : `index ${percent(prior)}` }),
      make("div", { "aria-hidden": "true" }, bar, mark),
    );
  };
  const who = vote.neighbours === 1 ? "1 patient" : `${vote.neighbours} patients`;
  const said = vote.calibrated ? `calibrated on ${vote.calibrated_on} patients` : "not calibrated";
  const plausible = vote.set.length ? `Plausible: ${vote.set.join(" or ")}` : "Doubtful: less clear than for nine in ten known patients";
  const silent = vote.reason ? `${vote.reason[0].toUpperCase()}${vote.reason.slice(1)}.` : "The neighbours say nothing.";
  return make(
    "section",
    { "aria-label": `Evidence for ${plain(name)}` },
    make("h3", { textContent: plain(name) }, make("em", { textContent: vote.abstain ? "no vote" : said })),
    make("ul", {}, ...(vote.abstain ? [] : Object.keys(vote.probabilities).map(share))),
    make("p", { textContent: vote.abstain ? silent : `${plausible} · ${who}` }),
    make("p", { className: "quiet", textContent: holdings(vote) }),
  );
}

/** What the index holds of a label, and what it would not notice. */
function holdings(vote) {
  const held = Object.entries(vote.held ?? {}).map(([value, n]) => `${value}: ${n}`);
  const lacks = vote.lacks?.length ? `; none of ${vote.lacks.join(", ")}` : "";
  const others = vote.others ? ` ${vote.others[0].toUpperCase()}${vote.others.slice(1)}.` : "";
  return held.length ? `The index holds ${held.join(", ")}${lacks}.${others}` : "";
}

function card(hit, place) {
  const labels = telling(hit);
  const picture = make("img", { alt: "" });
  call(hit.thumbnail)
    .then((response) => response.blob())
    .then((blob) => {
      picture.onload = () => URL.revokeObjectURL(picture.src);
      picture.src = URL.createObjectURL(blob);
    })
    .catch(() => picture.classList.add("gone"));
  const button = make(
    "button",
    { type: "button", className: "hit", tabIndex: place ? -1 : 0 },
    picture,
    make("span", { className: "rank", textContent: hit.rank }),
    make("span", { className: "score", textContent: hit.score.toFixed(3) }),
    make(
      "span",
      { className: "labels" },
      ...labels.slice(0, 4).map((name) =>
        make("span", { title: `${plain(name)}: ${hit.labels[name]}` }, make("small", { textContent: `${plain(name)} ` }), hit.labels[name]),
      ),
    ),
  );
  const looks = (hit.likeness ?? []).join("; ");
  if (looks) button.append(make("span", { className: "likeness", textContent: looks, title: looks }));
  const spoken = [...labels.map((name) => `${plain(name)} ${hit.labels[name]}`), ...(hit.likeness ?? [])].join(", ");
  button.setAttribute("aria-label", `Hit ${hit.rank}, similarity ${hit.score.toFixed(3)}${spoken ? `, ${spoken}` : ""}`);
  button.addEventListener("click", () => choose(hit.case_id, false));
  const tick = make("input", { type: "checkbox", tabIndex: place ? -1 : 0, "aria-label": `Mark hit ${hit.rank}`, title: "Mark (M)" });
  tick.addEventListener("change", () => mark(hit, tick.checked));
  return make("li", {}, button, tick);
}

/** Columns of a hit's labels, those with evidence first, without those that are the same in all hits. */
function telling(hit) {
  const { evidence, hits } = state.answer;
  const columns = new Set([...Object.keys(evidence), ...Object.keys(hit.labels)]);
  const differs = (name) => name in evidence || hits.some((other) => other.labels[name] !== hit.labels[name]);
  return [...columns].filter((name) => name in hit.labels && differs(name));
}

function mark(hit, on) {
  if (on) state.marked.set(hit.case_id, hit);
  else state.marked.delete(hit.case_id);
  const place = state.answer.hits.indexOf(hit);
  const row = $("#hits ol").children[place];
  row.classList.toggle("marked", on);
  row.querySelector("input").checked = on;
  more();
}

function more() {
  const n = state.marked.size;
  $("#more").hidden = !n;
  $("#more button").textContent = n > 1 ? `More like these ${n}` : "More like this";
}

/** Make a hit the one that is looked at; the first if the answer has no such case. */
function choose(caseId, fresh) {
  const { hits } = state.answer;
  if (!hits.length) return;
  const place = Math.max(hits.findIndex((hit) => hit.case_id === caseId), 0);
  const hit = hits[place];
  if (hit === state.hit) return;
  state.hit = hit;
  [...$("#hits ol").children].forEach((row, i) => {
    const chosen = i === place;
    const button = row.querySelector("button");
    for (const part of [button, row.querySelector("input")]) part.tabIndex = chosen ? 0 : -1;
    if (chosen) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
    if (chosen) button.scrollIntoView({ block: "nearest", inline: "nearest" });
    const focused = document.activeElement;
    if (chosen && (fresh ? focused === document.body : focused?.classList.contains("hit"))) button.focus();
  });
  const question = here();
  question.delete("hit");
  const rest = address(question);
  history.replaceState(null, "", `#${rest}${place ? `&hit=${encodeURIComponent(hit.case_id)}` : ""}`);
  compare();
}

const step = (by) => {
  const { answer, hit } = state;
  const next = answer?.hits[answer.hits.indexOf(hit) + by];
  if (next) choose(next.case_id, false);
};

// ---- a report in the PACS ------------------------------------------------------------------------

/** Offer to file the answer that is shown, or say why that cannot be, or where it was filed. */
function filing() {
  const place = $("#filing");
  place.hidden = !state.info?.pacs || !state.answer;
  if (place.hidden) return;
  const said = [];
  const stored = filed.get(state.question);
  if (stored === null) said.push("Filing…");
  else if (stored) said.push(...whereFiled(stored));
  else if (!new URLSearchParams(state.question).has("series")) said.push("Only where a series of the PACS was asked with.");
  else if (!["write", "admin"].includes(state.info.role)) said.push("Your token does not allow it: it lacks the role write.");
  else if (!state.answer.hits.length) said.push("There is no case to report.");
  place.querySelector("button").disabled = said.length > 0;
  place.querySelector("p").replaceChildren(...said);
}

function whereFiled(stored) {
  const said = ["Filed in the study of this series, as “Similar cases”."];
  if (!BEHIND_ORTHANC) return said;
  const href = `../../app/explorer.html#instance?uuid=${encodeURIComponent(stored)}`;
  return [...said, " ", make("a", { href, target: "_blank", rel: "noopener", textContent: "Show it" })];
}

/** File the answer to a question. Nothing stops it once it was sent: it may be in the PACS already. */
async function file(question = state.question) {
  const fields = pairs(new URLSearchParams(question), "series", "k", "where", "by", "region");
  filed.set(question, null);
  filing();
  try {
    filed.set(question, (await json("sr", form(fields))).stored);
  } catch (error) {
    filed.delete(question);
    complain(error, () => file(question));
  }
  filing();
}

// ---- the two images ------------------------------------------------------------------------------

/**
 * Load the pair of the chosen hit: the matched scans and slices, or another scan of both sides. Who stays sees
 * the place that is shown, in the matched scans too.
 */
async function compare(other = null, stay = false) {
  const { hit } = state;
  const turn = ++state.showing;
  const matched = other === null || other.volumes[1] === hit.volume;
  const asking = here().has("like") ? "Marked case" : "Query";
  const sides = [
    [panes.query, asking, hit.query_volume, hit.query_sequence, hit.query_slice, ""],
    [panes.hit, `Hit ${hit.rank}`, hit.volume, hit.sequence, hit.slice, telling(hit).map((name) => `${plain(name)} ${hit.labels[name]}`).join(" · ")],
  ];
  $("#why").hidden = !hit.explanation || !matched;
  if (other === null) choices(hit, turn);
  await Promise.all(
    sides.map(async ([pane, title, path, own, slice, whose], side) => {
      pane.title = title;
      const shown = matched ? own : other.name;
      pane.caption.replaceChildren(
        make("b", { textContent: title }),
        make("span", { textContent: [shown, whose].filter(Boolean).join(" · "), title: `case ${pane === panes.hit ? hit.case_id : hit.query_source}` }),
        make("span", { className: "where" }),
      );
      const source = matched ? path : other.volumes[side];
      try {
        if (pane.source !== source) {
          pane.source = null;
          pane.say("Loading…");
          const data = await bytes(source);
          if (turn !== state.showing) return;
          await pane.show(data, matched && !stay ? slice : null, [shown, whose].filter(Boolean).join(", "));
          pane.source = source;
        } else {
          pane.explain(null);
          if (matched && !stay) pane.goto(slice);
        }
      } catch (error) {
        if (turn !== state.showing) return;
        pane.say(error instanceof ServiceError ? error.message : `This image cannot be shown: ${error.message}`);
      }
    }),
  );
  if (turn !== state.showing) return;
  state.matched = [panes.query.slice, panes.hit.slice];
  fit();
  regionShown();
  if ($("#why").ariaPressed === "true" && !$("#why").hidden) explain(true);
}

/** The scans of a case; none if it is gone. */
const scansOf = async (caseId) =>
  (await json(`cases/${caseId.split("/").map(encodeURIComponent).join("/")}`).catch(() => ({ scans: [] }))).scans;

/** One scan of each sequence, the matched one among them; none where there is but one. */
function oneEach(scans, matched) {
  const first = scans.find((scan) => scan.volume === matched);
  const found = scans.filter((scan, n) => (scan.sequence === first?.sequence ? scan === first
    : scans.findIndex((other) => other.sequence === scan.sequence) === n));
  return found.length > 1 ? found : [];
}

/**
 * Offer the scans that both sides have: by sequence, and among several of one by their order. Below each image
 * are the other sequences of its study.
 */
async function choices(hit, turn) {
  const place = $("#sequences");
  place.replaceChildren();
  if ((state.answer.query.sequence ?? "").split("+").length < 2) {
    for (const side of Object.values(tiles)) side.show([]);
    return;
  }
  const own = state.answer.query.scans ?? (await scansOf(hit.query_source));
  const held = await scansOf(hit.case_id);
  if (turn !== state.showing) return;
  tiles.query.show(oneEach(own, hit.query_volume));
  tiles.hit.show(oneEach(held, hit.volume));
  const of = (scans, name) => scans.filter((scan) => scan.sequence === name);
  const both = [...new Set(own.map((scan) => scan.sequence))].flatMap((name) => {
    const sides = [of(own, name), of(held, name)];
    const several = Math.min(...sides.map((scans) => scans.length));
    return [...Array(several).keys()].map((n) => ({
      name: several > 1 ? `${name} ${n + 1}` : name,
      volumes: sides.map((scans) => scans[n].volume),
    }));
  });
  if (both.length < 2) return;
  const buttons = both.map(({ name, volumes }) =>
    make("button", { type: "button", textContent: name, ariaPressed: String(volumes[1] === hit.volume) }),
  );
  const take = (n, stay) => {
    buttons.forEach((each, i) => (each.ariaPressed = String(i === n)));
    compare(both[n], stay);
  };
  buttons.forEach((button, n) => button.addEventListener("click", () => take(n, false)));
  place.append(...buttons);
  for (const [side, its] of Object.values(tiles).entries())
    its.onchoose = (scan) => {
      const n = both.findIndex(({ volumes }) => volumes[side] === scan.volume);
      if (n >= 0) take(n, true);
    };
}

/** Lay the maps of the chosen pair over the images, or take them away. */
async function explain(on) {
  const why = state.hit?.explanation;
  if (!why) return;
  $("#why").ariaPressed = String(on);
  const turn = state.showing;
  const meant = () => turn === state.showing && pressed("why") === on;
  const sides = [[panes.query, why.query], [panes.hit, why.hit]];
  await Promise.all(
    sides.map(async ([pane, path]) => {
      try {
        const data = on && path ? await bytes(path) : null;
        if (meant()) await pane.explain(data);
      } catch (error) {
        if (meant()) complain(error, () => explain(true));
      }
    }),
  );
}

/** The asked region on the query, where it is on this grid. */
function regionShown() {
  const { region, region_slice: slice } = state.answer.query;
  if (state.box) return;
  panes.query.box(region ? { x0: region[0], y0: region[1], x1: region[2], y1: region[3], slice } : null);
}

/** A drawn box waits for Enter, or null takes it away. */
function draw(box) {
  state.box = box;
  $("#search")?.remove();
  if (!box) {
    if (state.answer) regionShown();
    else panes.query.box(null);
    return;
  }
  const button = make("button", { type: "button", id: "search", className: "primary", textContent: "Search this region" });
  button.addEventListener("click", searchRegion);
  panes.query.stage.append(button);
  button.focus();
}

function searchRegion() {
  const { x0, y0, x1, y1, slice } = state.box;
  press("region", false);
  go({ region: `${x0},${y0},${x1},${y1}@${slice}`, hit: null });
}

/** Scrolling one image scrolls the other by as many millimetres along its slices, from the matched pair. */
function follow(from, to, [own, other]) {
  if (!pressed("linked") || !from.image || !to.image) return;
  const pitch = ({ volume }) => volume.spacing[volume.axis];
  const by = from.volume.axis === to.volume.axis ? pitch(from) / pitch(to) : 1;
  to.goto(other + (from.slice - own) * by);
}

function reset() {
  window_(FIRST);
  for (const pane of Object.values(panes)) pane.view(WHOLE);
  if (!state.hit) return;
  panes.query.goto(state.matched[0]);
  panes.hit.goto(state.matched[1]);
}

/** Give both images the scale that lets both fill their panes; one scale, so that sizes can be compared. */
function fit() {
  const shown = Object.values(panes).filter((pane) => pane.image);
  const common = shown.every((pane) => pane.volume.placed) ? Math.min(...shown.map((pane) => pane.fit())) : null;
  for (const pane of shown) pane.view(pane.look, common ?? pane.fit());
}

function window_(share) {
  $("#level").value = share.level * 100;
  $("#width").value = share.width * 100;
  for (const pane of Object.values(panes)) pane.window(share);
}

// ---- filters -------------------------------------------------------------------------------------

function filters() {
  const question = here();
  const where = new Map(question.getAll("where").map((one) => [one.slice(0, one.indexOf("=")), one.slice(one.indexOf("=") + 1)]));
  const choice = (name, values, chosen, change) => {
    const select = make("select", {}, ...values.map(([value, text]) => make("option", { value, textContent: text, selected: value === chosen })));
    select.addEventListener("change", () => change(select.value));
    return make("label", {}, make("span", { textContent: name }), select);
  };
  const columns = Object.entries(state.info?.labels ?? {}).filter(([, values]) => values.length > 1 && values.length <= FEW);
  const selects = columns.map(([name, values]) =>
    choice(plain(name), [["", "any"], ...values.map((value) => [value, value])], where.get(name) ?? "", (value) => {
      if (value) where.set(name, value);
      else where.delete(name);
      go({ where: [...where].map(([column, one]) => `${column}=${one}`), hit: null });
    }),
  );
  const k = question.get("k") ?? "10";
  const numbers = [...new Set([...K.map(String), k])].sort((a, b) => a - b).map((n) => [n, n]);
  selects.push(choice("hits", numbers, k, (value) => go({ k: value === "10" ? null : value })));
  const orders = [["", "class, then appearance"], ["class", "class"], ["appearance", "appearance"], ["similarity", "similarity"]];
  selects.push(choice("order by", orders, question.get("by") ?? "", (value) => go({ by: value || null, hit: null })));
  $("#filters .columns").replaceChildren(...selects);
}

// ---- hands ---------------------------------------------------------------------------------------

const pressed = (id) => $(`#${id}`).ariaPressed === "true";

function press(id, on = !pressed(id)) {
  $(`#${id}`).ariaPressed = String(on);
  if (id === "region" && on) press("crosshair", false);
  if (id === "crosshair") {
    if (on) press("region", false);
    for (const pane of Object.values(panes)) pane.point(on ? [0.5, 0.5] : null);
  }
  const mode = pressed("crosshair") ? "point" : "window";
  panes.hit.mode = mode;
  panes.query.mode = pressed("region") ? "region" : mode;
  document.body.dataset.mode = panes.query.mode;
}

const pick = () => $("#file").click();

function escape() {
  if (state.asking) {
    state.asking.abort(); // and stay with what is shown
    history.replaceState(null, "", `#${state.question}`);
    filters();
  } else if (state.box) draw(null);
  else if (pressed("region")) press("region", false);
  else $("#alert").hidden = true;
}

const KEYS = {
  ArrowDown: () => step(1),
  ArrowUp: () => step(-1),
  ArrowRight: () => panes.query.scroll.disabled || turn(1),
  ArrowLeft: () => panes.query.scroll.disabled || turn(-1),
  m: () => state.hit && mark(state.hit, !state.marked.has(state.hit.case_id)),
  r: () => !$("#region").disabled && press("region"),
  c: () => press("crosshair"),
  l: () => press("linked"),
  e: () => !$("#why").hidden && explain(!pressed("why")),
  f: () => !$("#filing").hidden && !$("#filing button").disabled && $("#sure").showModal(),
  "+": () => panes.query.zoom(1.25),
  "=": () => panes.query.zoom(1.25),
  "-": () => panes.query.zoom(0.8),
  0: reset,
  o: pick,
  "?": () => $("#keys").showModal(),
};

function turn(by) {
  if (!panes.query.image) return;
  panes.query.goto(panes.query.slice + by);
  panes.query.dispatchEvent(new CustomEvent("slice"));
}

function listen() {
  addEventListener("hashchange", visit);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    if (event.key === "Escape") return escape();
    const field = event.target.closest("input:not([type=checkbox]), select, textarea");
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (field || !(key in KEYS) || (!state.answer && !["o", "?"].includes(key))) return;
    event.preventDefault();
    KEYS[key]();
  });

  for (const button of [$("#open"), $("#start .primary")]) button.addEventListener("click", pick);
  $("#file").addEventListener("change", (event) => {
    upload([...event.target.files]);
    event.target.value = "";
  });
  let over = 0;
  const carries = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragenter", (event) => carries(event) && ($("#drop").hidden = !++over));
  addEventListener("dragleave", (event) => carries(event) && ($("#drop").hidden = !(over = Math.max(over - 1, 0))));
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    over = 0;
    $("#drop").hidden = true;
    upload([...event.dataTransfer.files]);
  });
  $("#pacs").addEventListener("submit", (event) => {
    event.preventDefault();
    const uid = $("#uid").value.trim();
    if (uid) go({ series: uid }, new URLSearchParams());
  });
  $("#filters").addEventListener("submit", (event) => event.preventDefault());
  $("#alert .dismiss").addEventListener("click", () => ($("#alert").hidden = true));
  $("#more button").addEventListener("click", () => {
    go({ like: [...state.marked.keys()] }, new URLSearchParams(pairs(here(), "k", "where", "by")));
  });
  $("#more .clear").addEventListener("click", () => [...state.marked.values()].forEach((hit) => mark(hit, false)));
  $("#filing button").addEventListener("click", KEYS.f);
  $("#sure form").addEventListener("submit", () => file());
  $("#sure .cancel").addEventListener("click", () => $("#sure").close());
  $("#help").addEventListener("click", () => $("#keys").showModal());
  for (const id of ["region", "crosshair", "linked"]) $(`#${id}`).addEventListener("click", () => press(id));
  $("#why").addEventListener("click", () => explain(!pressed("why")));
  $("#reset").addEventListener("click", reset);
  for (const id of ["level", "width"])
    $(`#${id}`).addEventListener("input", () => window_({ level: $("#level").value / 100, width: $("#width").value / 100 }));

  const { query, hit } = panes;
  for (const [from, to] of [[query, hit], [hit, query]]) {
    from.addEventListener("slice", () => {
      const pair = state.matched;
      follow(from, to, from === query ? pair : pair.toReversed());
    });
    from.addEventListener("window", (event) => window_(event.detail));
    from.addEventListener("view", (event) => [query, hit].forEach((pane) => pane.view(event.detail)));
    from.addEventListener("fit", fit);
    from.addEventListener("point", (event) => [query, hit].forEach((pane) => pane.point(event.detail)));
  }
  query.addEventListener("box", (event) => draw(event.detail));
}

/** Ask for the token; promises it, or null if the user will not. */
door.ask = (refused) =>
  new Promise((resolve) => {
    const dialog = $("#token");
    const field = $("#secret");
    dialog.querySelector("p").textContent = refused
      ? "The service does not know this token. Give another one."
      : "This service answers only to those who hold a token. It is kept until this tab is closed.";
    field.value = "";
    let given = null;
    dialog.querySelector("form").onsubmit = () => (given = field.value.trim());
    dialog.querySelector(".cancel").onclick = () => dialog.close();
    dialog.addEventListener("close", () => resolve(given), { once: true });
    dialog.showModal();
    field.focus();
  });

async function start() {
  listen();
  press("region", false);
  filters();
  try {
    await Promise.all(Object.values(panes).map((pane) => pane.start()));
  } catch (error) {
    complain(error);
  }
  try {
    state.info = await json("info");
    const { cases, patients } = state.info;
    $("#holds").textContent = `${cases} known cases of ${patients} patients`;
    $("#pacs").hidden = !state.info.pacs;
    filters();
  } catch (error) {
    complain(error, () => location.reload());
    if (error.status === 401) return;
  }
  await visit();
}

start();
