// The picture as a whole: which classes it shows, and one cursor through all of it, by pointer or by keys.

const makePicture = (viewChanged) => {
  const view = { order: null, find: '', page: 0 };
  let history = null;
  let axis = null;
  let found = []; // the classes that are asked for
  let classes = []; // of them those on this page
  // By what it points at, not by where that stands: the picture grows and is sorted anew under it.
  let cursor = null; // { records (null: the newest), name (null: the averages) }
  const pager = makePager(byId('class-pages'), 'classes', (page) => { view.page = page; draw(); });

  const pagesOf = () => Math.max(1, Math.ceil(found.length / CLASSES_A_PAGE));
  const columnOf = () => (cursor.records === null ? axis.at.length - 1 : Math.max(0, lastUpTo(axis.at, cursor.records)));
  const rowOf = () => (cursor.name === null ? -1 : classes.findIndex((each) => each.name === cursor.name));

  const draw = () => {
    if (history === null) return;
    const isEmpty = columnsOf(history).length === 0;
    setHidden(byId('empty'), !isEmpty);
    setHidden(byId('drawn'), isEmpty);
    setHidden(byId('classes-section'), history.classes.length === 0);
    if (view.order === null && history.classes.length > 0) {
      view.order = history.classes.length > CLASSES_A_PAGE ? 'worst' : 'seen';
      byId('order').value = view.order;
    }
    found = chosenClasses(history, view.order ?? 'seen', view.find);
    view.page = Math.min(view.page, pagesOf() - 1);
    classes = found.slice(view.page * CLASSES_A_PAGE, (view.page + 1) * CLASSES_A_PAGE);
    pager(view.page, pagesOf(), CLASSES_A_PAGE, found.length);
    viewChanged(classes);
    if (!isEmpty) drawAll();
  };

  const drawAll = () => {
    const width = byId('lane').clientWidth;
    if (width <= 0) return;
    axis = timeAxis(history, width);
    drawLane(byId('lane'), byId('lane-labels'), axis, history.events.lines);
    drawCurves();
    drawCells(byId('cells'), axis, classes);
    drawRowLabels(byId('map-labels'), byId('map-ends'), classes);
    drawAxis(byId('axis'), axis);
    drawCursor();
  };

  const drawCurves = () => {
    const one = cursor === null || rowOf() < 0 ? null
      : axis.at.map((_, column) => accuracyAt(classes[rowOf()], column));
    drawCurve(byId('accuracy'), byId('accuracy-ends'), axis, history, 'accuracy', one);
    drawCurve(byId('forgetting'), byId('forgetting-ends'), axis, history, 'forgetting', null);
  };

  // -- the cursor ---------------------------------------------------------------------------------------------------

  const cell = element('div', { class: 'cell', hidden: true });
  const mapLine = element('div', { class: 'moment', hidden: true });
  byId('map').append(mapLine, cell);

  const drawCursor = () => {
    const lines = document.querySelectorAll('.plot .moment');
    if (cursor === null) {
      for (const line of lines) line.hidden = true;
      cell.hidden = true;
      byId('readout').replaceChildren('Point at the picture, or focus it and use the arrow keys.');
      return;
    }
    const column = columnOf();
    const row = rowOf();
    const [left, right] = [axis.edges[column], axis.edges[column + 1]];
    for (const line of lines) {
      line.hidden = false;
      line.style.left = `${axis.x(axis.at[column])}px`;
    }
    const height = rowHeightOf(classes.length);
    cell.hidden = row < 0;
    if (row >= 0) {
      const width = Math.max(6, right - left);
      cell.style.left = `${(left + right - width) / 2}px`;
      cell.style.width = `${width}px`;
      cell.style.top = `${row * height}px`;
      cell.style.height = `${height}px`;
    }
    byId('readout').replaceChildren(...(row < 0 ? averagesAt(column) : classAt(classes[row], column)), ...eventsAt(column));
  };

  const when = (column) => `after ${count(axis.at[column])} records`;

  const classAt = (each, column) => {
    const share = accuracyAt(each, column);
    const text = share === null ? 'not known yet' : percent(share);
    const now = each.accuracy === null ? '' : `; now ${percent(each.accuracy)}, best ${percent(each.best)}, `
      + `forgotten ${percent(each.forgetting)}, ${plural(each.n, 'sample', 'samples')} held out`;
    return [element('b', {}, nameOf(each.name)), ` ${when(column)}: `, element('b', {}, text),
      `${now}, ${count(each.replay)} stored.`];
  };

  const averagesAt = (column) => {
    const at = axis.at[column];
    const text = `${when(column)}: average accuracy ${percent(history.course.accuracy[column])}, `
      + `average forgetting ${percent(history.course.forgetting[column])}`;
    const other = baselineAt(history, 'accuracy', at);
    return other === null ? [`${text}.`] : [`${text}; `, element('bdi', {}, shown(history.baseline.title)),
      `: ${percent(other)}, ${percent(baselineAt(history, 'forgetting', at))}.`];
  };

  const eventsAt = (column) => {
    const there = history.events.lines.filter((event) => event.near !== null
      && axis.columnAt(axis.x(event.near)) === column);
    const more = there.length > 3 ? ` And ${count(there.length - 3)} more events.` : '';
    return there.length === 0 ? []
      : [` Here: ${there.slice(0, 3).map((event) => shown(event.text)).join('; ')}.${more}`];
  };

  const point = (column, row) => {
    const before = cursor;
    const isNewest = column >= axis.at.length - 1;
    const name = row === null || classes.length === 0 ? null
      : classes[Math.max(0, Math.min(classes.length - 1, row))].name;
    cursor = { records: isNewest ? null : axis.at[Math.max(0, column)], name };
    if (before === null || before.name !== name) drawCurves();
    drawCursor();
  };

  const onKey = (isMap) => (event) => {
    if (axis === null || event.ctrlKey || event.altKey || event.metaKey) return;
    const step = event.shiftKey ? 10 : 1;
    const column = cursor === null ? axis.at.length - 1 : columnOf();
    const row = isMap ? Math.max(0, cursor === null ? 0 : rowOf()) : null;
    const turned = (by) => () => {
      const page = Math.max(0, Math.min(pagesOf() - 1, view.page + by));
      if (page !== view.page) { view.page = page; cursor = null; draw(); }
      point(column, 0);
    };
    const moves = {
      ArrowLeft: () => point(column - step, row),
      ArrowRight: () => point(column + step, row),
      Home: () => point(0, row),
      End: () => point(axis.at.length - 1, row),
      ...(isMap && {
        ArrowUp: () => point(column, row - step),
        ArrowDown: () => point(column, row + step),
        PageUp: turned(-1),
        PageDown: turned(1),
      }),
      Escape: () => { cursor = null; drawCurves(); drawCursor(); },
    };
    if (moves[event.key] === undefined) return;
    event.preventDefault();
    moves[event.key]();
  };

  const onPointer = (isMap) => (event) => {
    if (axis === null) return;
    const box = event.currentTarget.getBoundingClientRect();
    const row = isMap ? Math.floor((event.clientY - box.top) / rowHeightOf(classes.length)) : null;
    point(axis.columnAt(event.clientX - box.left), row);
  };

  for (const [name, isMap] of [['map', true], ['accuracy', false], ['forgetting', false], ['lane', false]]) {
    const place = byId(name);
    place.addEventListener('pointermove', onPointer(isMap));
    place.addEventListener('pointerdown', onPointer(isMap));
    if (name === 'lane') continue; // its events are in a table of their own
    place.addEventListener('keydown', onKey(isMap));
    place.addEventListener('focus', () => {
      if (axis === null || !place.matches(':focus-visible')) return; // by keys
      const row = Math.max(0, cursor === null ? 0 : rowOf());
      point(cursor === null ? axis.at.length - 1 : columnOf(), isMap ? row : null);
    });
  }

  // -- what is chosen -----------------------------------------------------------------------------------------------

  byId('controls').addEventListener('submit', (event) => event.preventDefault());
  byId('order').addEventListener('change', (event) => { view.order = event.target.value; view.page = 0; draw(); });
  byId('find').addEventListener('input', (event) => { view.find = event.target.value; view.page = 0; draw(); });
  let isWaiting = false;
  new ResizeObserver(() => {
    if (isWaiting) return;
    isWaiting = true;
    requestAnimationFrame(() => { isWaiting = false; if (history !== null && columnsOf(history).length > 0) drawAll(); });
  }).observe(byId('picture'));
  drawScale(byId('scale'));

  return (newer) => { history = newer; draw(); };
};
