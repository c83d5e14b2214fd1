// Another column for another model.

const columns = document.querySelector("[data-columns]");
const add = document.querySelector("[data-add]");

if (columns && add) {
  const most = Number(columns.dataset.columns);
  add.hidden = columns.children.length >= most;
  add.addEventListener("click", () => {
    const column = columns.lastElementChild.cloneNode(true);
    const model = column.querySelector("select[name=model]");
    const before = columns.lastElementChild.querySelector("select[name=model]").selectedIndex;
    column.querySelector("legend").textContent = `Column ${columns.children.length + 1}`;
    column.querySelector("input").value = "";
    model.selectedIndex = Math.min(before + 1, model.options.length - 1);
    columns.append(column);
    add.hidden = columns.children.length >= most;
    model.focus();
  });
}
