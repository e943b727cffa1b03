// Tables of some rows at a time: however long a list grows, the document does not.

// `makePager` keeps its buttons, so that whoever stands on one stays there while the list changes.
const makePager = (place, what, turn) => {
  const back = element('button', { type: 'button', 'aria-label': `previous ${what}` }, '‹');
  const on = element('button', { type: 'button', 'aria-label': `next ${what}` }, '›');
  const where = element('span');
  let page = 0;
  back.addEventListener('click', () => turn(page - 1));
  on.addEventListener('click', () => turn(page + 1));
  return (newPage, pages, size, total) => {
    page = newPage;
    if (pages <= 1) {
      if (place.hasChildNodes()) place.replaceChildren();
      return;
    }
    if (!place.hasChildNodes()) place.replaceChildren(back, where, on);
    setText(where, `${count(page * size + 1)} to ${count(Math.min(total, (page + 1) * size))} of ${count(total)} ${what}`);
    back.disabled = page === 0;
    on.disabled = page === pages - 1;
  };
};

const fillTable = (table, caption, columns, rows) => {
  const head = element('tr', {}, ...columns.map((column) => element('th', {
    scope: 'col', class: column.words ? 'words' : null,
  }, column.title)));
  const line = (row) => element('tr', {}, ...columns.map((column, place) => {
    const classes = [column.words && 'words', column.long && 'long'].filter(Boolean).join(' ') || null;
    const name = place === 0 ? 'th' : 'td';
    return element(name, { class: classes, scope: place === 0 ? 'row' : null }, ...[column.cell(row)].flat());
  }));
  table.replaceChildren(element('caption', {}, caption), element('thead', {}, head), element('tbody', {}, ...rows.map(line)));
};

// A scrollable box that keys reach too.
const sheetOf = (label) => element('div', { class: 'sheet', tabindex: '0', role: 'region', 'aria-label': label });

const makePagedTable = (place, { label, what, size, columns, caption, empty }) => {
  const sheet = sheetOf(label);
  const table = element('table');
  const none = element('p', { class: 'nothing-yet' }, empty);
  const pages = element('div', { class: 'pages below' });
  let rows = [];
  let page = 0;
  const pager = makePager(pages, what, (newPage) => { page = newPage; draw(); });
  place.replaceChildren(sheet, pages);
  const draw = () => {
    const last = Math.max(1, Math.ceil(rows.length / size)) - 1;
    page = Math.min(page, last);
    sheet.replaceChildren(rows.length === 0 ? none : table);
    if (rows.length > 0) fillTable(table, caption, columns, rows.slice(page * size, (page + 1) * size));
    pager(page, last + 1, size, rows.length);
  };
  draw();
  return (newRows) => { rows = newRows; draw(); };
};
