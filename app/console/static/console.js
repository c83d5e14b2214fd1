// Times in the reader's zone, parts of the page as they change or come later, and the keyboard.

const exact = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "long" });
const sameDay = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });
const otherDay = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

function localise(part) {
  for (const time of part.querySelectorAll("time[datetime]")) {
    const moment = new Date(time.dateTime);
    const today = moment.toDateString() === new Date().toDateString();
    time.textContent = (today ? sameDay : otherDay).format(moment);
    time.title = `${exact.format(moment)} (${time.dateTime})`;
  }
}

let stream = null;
// When the page was last known to be as it is.
let current = new Date();
let chosen = -1;
// The parts of the page as the server made them: one that comes again as it was is left alone, under a pointer too.
const shown = new Map([...document.querySelectorAll("[id^=live_]")].map((place) => [place.id, place.innerHTML]));

function say(text) {
  document.getElementById("live-state").textContent = text;
}

function follow() {
  if (stream || document.hidden || document.documentElement.dataset.live !== "on") return;
  stream = new EventSource(document.documentElement.dataset.stream ?? location.href.split("#")[0]);
  stream.addEventListener("open", () => {
    current = new Date();
    say("live");
    // What comes now is told from its beginning.
    for (const growing of document.querySelectorAll("[data-growing]")) growing.textContent = "";
  });
  stream.addEventListener("part", (event) => {
    current = new Date();
    const { part, html } = JSON.parse(event.data);
    const place = document.getElementById(part);
    if (!place || place.contains(document.activeElement) && document.activeElement.matches("textarea, input")) return;
    const made = document.createElement("template");
    made.innerHTML = html;
    if (shown.get(part) === made.innerHTML) return;
    shown.set(part, made.innerHTML);
    const told = new Map();
    for (const growing of place.querySelectorAll("[data-growing]")) told.set(growing.dataset.growing, growing.textContent);
    const held = place.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    place.innerHTML = html;
    if (held) focusAgain(place, held);
    for (const growing of place.querySelectorAll("[data-growing]")) {
      growing.textContent = told.get(growing.dataset.growing) ?? "";
    }
    localise(place);
    mark();
  });
  stream.addEventListener("text", (event) => {
    // `of` names one of several texts that grow; `anew` drops what was told of it.
    const { text, of = "", anew = false } = JSON.parse(event.data);
    const growing = document.querySelector(`[data-growing="${CSS.escape(of)}"]`);
    if (growing && anew) growing.textContent = text;
    else if (growing) growing.append(text);
  });
  stream.addEventListener("ended", () => leave(""));
  stream.addEventListener("error", () => {
    const since = sameDay.format(current);
    const closed = stream && stream.readyState === EventSource.CLOSED;
    say(closed ? `not live since ${since}: load the page again` : `reconnecting… as of ${since}`);
  });
}

function leave(text) {
  if (stream) stream.close();
  stream = null;
  say(text);
}

// What takes longer than the page comes when it is there; a 202 says that it is not there yet.
const AGAIN_SECONDS = [2, 4, 8, 15, 30];

async function fill(place, tries = 0) {
  if (document.hidden) {
    document.addEventListener("visibilitychange", () => fill(place, tries), { once: true });
    return;
  }
  const { fill: address, text, form } = place.dataset;
  const body = text === undefined ? undefined : new URLSearchParams({ text, form });
  const answer = await fetch(address, { method: body ? "POST" : "GET", body }).catch(() => null);
  if (answer?.status === 202) {
    if (tries < AGAIN_SECONDS.length) setTimeout(() => fill(place, tries + 1), 1000 * AGAIN_SECONDS[tries]);
  } else if (answer?.ok && !answer.redirected) {
    place.innerHTML = await answer.text();
    localise(place);
  } else {
    place.replaceChildren();
  }
}

function rows() {
  return [...document.querySelectorAll("table.rows tbody tr")].filter((row) => row.querySelector("a"));
}

function mark() {
  rows().forEach((row, number) => row.classList.toggle("here", number === chosen));
}

// A link that the keyboard was on goes on being that, wherever its row is now.
function focusAgain(place, href) {
  const link = [...place.querySelectorAll("a")].find((each) => each.getAttribute("href") === href);
  if (!link) return;
  link.focus({ preventScroll: true });
  const number = rows().indexOf(link.closest("tr"));
  if (number >= 0) chosen = number;
}

function move(by) {
  const all = rows();
  if (!all.length) return;
  chosen = Math.max(0, Math.min(all.length - 1, chosen + by));
  mark();
  all[chosen].querySelector("a").focus();
  all[chosen].scrollIntoView({ block: "nearest" });
}

let before = "";
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, textarea, select")) return;
  const link = before === "g" && document.querySelector(`nav a[data-key="${CSS.escape(event.key)}"]`);
  if (link) {
    link.click();
  } else if (event.key === "/") {
    const search = document.querySelector("input[type=search]");
    if (search) { event.preventDefault(); search.focus(); }
  } else if (event.key === "j") {
    move(1);
  } else if (event.key === "k") {
    move(-1);
  } else if (event.key === "?") {
    document.getElementById("keys").showModal();
  }
  before = event.key;
});
document.addEventListener("click", async (event) => {
  const button = event.target.closest("button[data-copy]");
  if (!button) return;
  const told = document.getElementById(button.dataset.copy);
  try {
    await navigator.clipboard.writeText(told.textContent);
    button.textContent = "Copied";
  } catch {
    // Without HTTPS there is no clipboard: what is selected can be copied by hand.
    getSelection().selectAllChildren(told);
  }
});
document.addEventListener("visibilitychange", () => (document.hidden ? leave("paused") : follow()));
addEventListener("pagehide", () => leave(""));

// What was just done is said once: a page that is loaded again does not say it again.
const said = document.querySelector("[data-once]");
if (said) history.replaceState(null, "", said.dataset.once);
// On a phone the pages' names stand in one line, which scrolls.
document.querySelector("nav [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });
localise(document);
document.querySelectorAll("[data-fill]").forEach((place) => fill(place));
follow();
