// Searches and sorts the rows of a list. Without scripts they are in order of names.
const list = document.querySelector(".rows");
const rows = [...list.querySelectorAll(":scope > details")];
const buttons = [...document.querySelectorAll(".header button")];
const search = document.querySelector(".search");
const fold = (text) => text.normalize("NFKD").replace(/\p{M}/gu, "").toLowerCase();
let sorted = { key: "name", turn: 1 };

search.hidden = false;
search.addEventListener("input", () => {
  const wanted = fold(search.value.trim());
  for (const row of rows) row.hidden = !fold(row.dataset.name).includes(wanted);
  const left = rows.filter((row) => !row.hidden).length;
  document.querySelector(".shown").textContent = `${left} of ${rows.length}`;
});
for (const button of buttons) {
  button.disabled = false;
  button.addEventListener("click", () => {
    const key = button.dataset.key;
    // At the first click names ascend and numbers descend; the next one turns them.
    const turn = key === sorted.key ? -sorted.turn : key === "name" ? 1 : -1;
    sorted = { key, turn };
    for (const each of buttons) {
      each.dataset.turn = each === button ? (turn > 0 ? "up" : "down") : "";
    }
    const difference = key === "name"
      ? (a, b) => (a.dataset.name < b.dataset.name ? -1 : 1)
      : (a, b) => a.dataset[key] - b.dataset[key];
    list.append(...rows.sort((a, b) => turn * difference(a, b)));
  });
}
