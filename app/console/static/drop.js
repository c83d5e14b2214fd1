// A file that is dropped or chosen is checked at once, and sent only when somebody says so.

const form = document.querySelector("form.drop");
const file = form.elements.file;
const send = form.querySelector("button:not([formaction])");
const most = Number(form.dataset.most);
let asked = null;

function isTable() {
  return /\.(csv|tsv)$/i.test(file.files[0]?.name ?? "");
}

function report(text, kind = "attention") {
  const said = document.createElement("p");
  said.textContent = text;
  said.className = kind;
  if (kind === "attention") said.setAttribute("role", "alert");
  document.getElementById("report").replaceChildren(said);
}

async function check() {
  asked?.abort();
  send.disabled = true;
  form.querySelector("[data-for=csv]").hidden = file.files.length > 0 && !isTable();
  if (!file.files.length) return;
  if (file.files[0].size > most) {
    report(`The file is larger than ${most.toLocaleString("en")} bytes; make several of it, or raise MAX_FILE_BYTES.`);
    return;
  }
  // Not an error yet: it is still to be written.
  if (isTable() && !form.elements.template.value.trim()) {
    form.elements.template.focus();
  }
  asked = new AbortController();
  const { signal } = asked;
  // What was said of the file before counts no longer.
  report(`Checking ${file.files[0].name}…`, "note");
  const place = document.getElementById("report");
  place.setAttribute("aria-busy", "true");
  try {
    const answer = await fetch(form.dataset.check, { method: "POST", body: new FormData(form), signal });
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const said = page.getElementById("report");
    if (said) {
      place.replaceWith(document.adoptNode(said));
      send.disabled = !("accepted" in said.dataset);
    } else {
      report(page.querySelector("main p")?.textContent ?? "The check failed: load the page again.");
    }
  } catch (error) {
    if (error.name !== "AbortError") report("The file could not be checked: the service cannot be reached, or refused it. Try again.");
  } finally {
    if (!signal.aborted) document.getElementById("report").removeAttribute("aria-busy");
  }
}

form.addEventListener("change", check);
for (const kind of ["dragenter", "dragover"]) {
  form.addEventListener(kind, (event) => { event.preventDefault(); form.classList.add("over"); });
}
for (const kind of ["dragleave", "drop"]) {
  form.addEventListener(kind, () => form.classList.remove("over"));
}
form.addEventListener("drop", (event) => {
  event.preventDefault();
  if (!event.dataTransfer.files.length) return;
  file.files = event.dataTransfer.files;
  check();
});
form.querySelector("[formaction]").hidden = true;
check();
