// What is drawn, as tables: classes, the moments of the picture, events, versions.

const MOMENTS_A_PAGE = 12;
const LINES_A_PAGE = 25;

const barOf = (share) => {
  const bar = element('span', { class: 'bar' });
  bar.style.width = `${Math.round(share * 100)}%`;
  return element('span', { class: 'bars', 'aria-hidden': 'true' }, bar);
};

const classColumns = (history) => {
  const most = Math.max(1, ...history.classes.map((each) => each.replay));
  const other = history.baseline && history.baseline.course ? history.baseline : null;
  const beside = (name) => (each) => element('span', { class: 'other' },
    percent(other.classes[each.name] ? other.classes[each.name][name] : null));
  const withError = (each) => (each.accuracy === null ? NOTHING
    : `${percent(each.accuracy)} ± ${(each.error * 100).toFixed(1)}`);
  return [
    { title: 'class', words: true, cell: (each) => nameOf(each.name) },
    { title: 'accuracy', cell: withError },
    { title: 'best', cell: (each) => percent(each.best) },
    { title: 'forgotten', cell: (each) => percent(each.forgetting) },
    ...(other ? [{ title: `accuracy, ${shown(other.title)}`, cell: beside('accuracy') },
      { title: `forgotten, ${shown(other.title)}`, cell: beside('forgetting') }] : []),
    { title: 'held out', cell: (each) => (each.n > 0 && !each.counts
      ? element('span', { class: 'few', title: 'too few for the averages' }, `${count(each.n)} (few)`) : count(each.n)) },
    { title: 'stored', cell: (each) => [barOf(each.replay / most), count(each.replay)] },
  ];
};

const makeClassTable = (place) => {
  const sheet = sheetOf('Table of classes');
  const table = element('table');
  sheet.append(table);
  place.replaceChildren(sheet);
  return (history, classes) => {
    const at = history.evaluated === null ? '' : `As evaluated after ${count(history.evaluated.at)} records: `;
    fillTable(table, `${at}the classes of the picture, in its order. Stored is what the reservoir holds for replay.`,
      classColumns(history), classes);
  };
};

// The picture's columns in a table, a dozen at a time; made only while somebody has it open.
const makeMomentTable = (details, place) => {
  const sheet = sheetOf('The picture as a table');
  const table = element('table');
  const pages = element('div', { class: 'pages below' });
  let history = null;
  let classes = [];
  let page = null; // null: the newest
  sheet.append(table);
  place.append(sheet, pages);
  const pager = makePager(pages, 'evaluations', (newPage) => { page = newPage; draw(); });
  const draw = () => {
    if (!details.open || history === null || columnsOf(history).length === 0) return;
    const at = columnsOf(history);
    const last = Math.ceil(at.length / MOMENTS_A_PAGE) - 1;
    const here = page === null ? last : Math.min(page, last);
    page = here === last ? null : here;
    const from = here * MOMENTS_A_PAGE;
    const columns = at.slice(from, from + MOMENTS_A_PAGE).map((records, place) => ({
      title: count(records), cell: (row) => percent(row.at(from + place)),
    }));
    const averages = ['accuracy', 'forgetting'].map((name) => (
      { name: `average ${name}`, at: (column) => history.course[name][column] }));
    const others = history.baseline && history.baseline.course ? ['accuracy', 'forgetting'].map((name) => (
      { name: `average ${name}, ${shown(history.baseline.title)}`, at: (column) => baselineAt(history, name, at[column]) })) : [];
    const rows = classes.map((each) => ({ name: each.name, at: (column) => accuracyAt(each, column) }));
    fillTable(table, 'Accuracy after so many records.', [{ title: 'class', words: true, cell: (row) => nameOf(row.name) }, ...columns],
      [...averages, ...others, ...rows]);
    pager(here, last + 1, MOMENTS_A_PAGE, at.length);
  };
  details.addEventListener('toggle', () => (details.open ? draw() : table.replaceChildren()));
  return (newHistory, newClasses) => { history = newHistory; classes = newClasses; draw(); };
};

const makeEventTable = (place) => makePagedTable(place, {
  label: 'Table of events', what: 'events', size: LINES_A_PAGE, caption: 'The newest first.', empty: 'None is known yet.',
  columns: [
    { title: 'what', words: true, long: true, cell: (event) => [glyphOf(event.kind), element('bdi', {}, shown(event.text))] },
    { title: 'when', words: true, cell: (event) => moment(event.time) },
    { title: 'records', cell: (event) => (event.at !== null ? count(event.at)
      : event.near !== null ? `about ${count(event.near)}` : NOTHING) },
  ],
});

const makeVersionTable = (place) => makePagedTable(place, {
  label: 'Table of versions', what: 'versions', size: LINES_A_PAGE, empty: 'None is registered, as far as the events tell.',
  caption: 'As the events tell of them, the newest first; MLflow has the last word on roles.',
  columns: [
    { title: 'version', words: true, cell: (each) => String(each.version) },
    { title: 'role', words: true, cell: (each) => each.role ?? '' },
    { title: 'made for', words: true, cell: (each) => shown(each.trigger) },
    { title: 'records', cell: (each) => count(each.at) },
    { title: 'accuracy', cell: (each) => percent(each.accuracy) },
    { title: 'forgetting', cell: (each) => percent(each.forgetting) },
    { title: 'registered', words: true, cell: (each) => moment(each.time) },
  ],
});
