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

// Times that are filled in are the reader's too; in addresses they are UTC, so that they say the same to everybody.
function localiseFields() {
  const fields = [...document.querySelectorAll("input[type=datetime-local]")];
  for (const field of fields) {
    const given = field.getAttribute("value");
    const moment = new Date(/(Z|[+-]\d\d:?\d\d)$/i.test(given) ? given : `${given}Z`);
    if (isNaN(moment)) continue;
    moment.setMinutes(moment.getMinutes() - moment.getTimezoneOffset());
    field.value = moment.toISOString().slice(0, -1);
  }
  for (const note of document.querySelectorAll("[data-zone]")) note.textContent = note.dataset.zone;
  document.addEventListener("formdata", ({ target, formData }) => {
    for (const { name, value } of fields.filter((field) => field.form === target && field.value)) {
      formData.set(name, new Date(value).toISOString().replace(/(:00)?\.000Z$/, ""));
    }
  });
}

// A stream that was refused is asked for again after so long.
const REFUSED_SECONDS = 3;
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
    say(`reconnecting… as of ${sameDay.format(current)}`);
    if (stream?.readyState === EventSource.CLOSED) followLater();
  });
}

// A browser opens a stream again that broke off, but none that was answered with an error, which may pass too.
async function followLater() {
  const refused = stream;
  await new Promise((wait) => setTimeout(wait, 1000 * REFUSED_SECONDS));
  if (stream !== refused) return;
  const asking = new AbortController();
  const headers = { Accept: "text/event-stream" };
  const answer = await fetch(refused.url, { headers, signal: asking.signal }).catch(() => null);
  asking.abort();
  if (stream !== refused) return;
  if (answer && answer.status >= 400 && answer.status < 500 && answer.status !== 429) {
    say(`not live since ${sameDay.format(current)}: load the page again`);
  } else if (answer?.ok) {
    stream = null;
    follow();
  } else {
    followLater();
  }
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

// What was typed into a form is kept in this tab until a page says what became of it. Where the session has ended, the
// log-in comes first, and then the form's own page, where it stands in the form again.
const SENT = "sent";
const loggingIn = document.querySelector("input[type=password][name=key]") !== null;

// A file cannot be put back, and a secret is not kept.
function typed(form) {
  return [...form.elements].filter((field) => field.matches("textarea, select, input:not([type=hidden], [type=password], [type=file])"));
}

function keep(form) {
  const values = typed(form).map((field) => (field.type === "checkbox" || field.type === "radio" ? field.checked : field.value));
  const place = [...document.forms].indexOf(form);
  try {
    sessionStorage.setItem(SENT, JSON.stringify({ page: location.pathname + location.search, action: form.action, place, values }));
  } catch {
    // More than a browser keeps.
    sessionStorage.removeItem(SENT);
  }
}

function putBack() {
  const sent = JSON.parse(sessionStorage.getItem(SENT) ?? "null");
  sessionStorage.removeItem(SENT);
  const form = sent && document.forms[sent.place];
  const cameFromLogIn = document.referrer && new URL(document.referrer).pathname.endsWith("/console/login");
  if (!form || !cameFromLogIn || form.action !== sent.action || location.pathname + location.search !== sent.page) return;
  const fields = typed(form);
  if (fields.length !== sent.values.length) return;
  fields.forEach((field, number) => {
    const value = sent.values[number];
    if (typeof value === "boolean") field.checked = value;
    else field.value = value;
  });
  for (let around = form; around; around = around.parentElement) if (around.matches("details")) around.open = true;
  form.querySelectorAll("details").forEach((part) => { part.open = true; });
}

// A page that refuses what was sent stands at the address of the form, which can be loaded again and be led back to.
const { formPage } = document.documentElement.dataset;
if (formPage) history.replaceState(null, "", formPage + location.hash);
// A form that is sent already is not sent twice; one that the browser goes back to can be.
const sending = new Set();
addEventListener("pageshow", () => sending.clear());
document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.method !== "post") return;
  if (sending.has(form)) {
    event.preventDefault();
    return;
  }
  sending.add(form);
  if (!loggingIn) keep(form);
});
if (!loggingIn) putBack();

// What was just done is said once: a page that is loaded again does not say it again.
const said = document.querySelector("[data-once]");
if (said) history.replaceState(null, "", said.dataset.once);
// On a phone the pages' names stand in one line, which scrolls.
document.querySelector("nav [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });
localise(document);
localiseFields();
document.querySelectorAll("[data-fill]").forEach((place) => fill(place));
follow();
