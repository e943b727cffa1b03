// What /history says, as the parts of the page ask for it. Nothing here is drawn.

const CLASSES_A_PAGE = 40;
const UNIT = 10000; // of the accuracies of a class's course

const unknownLast = (value) => (value === null ? Infinity : value);

const ORDERS = {
  seen: () => 0,
  worst: (a, b) => unknownLast(a.accuracy) - unknownLast(b.accuracy),
  forgotten: (a, b) => (b.forgetting ?? -1) - (a.forgetting ?? -1),
  name: (a, b) => a.name.localeCompare(b.name, 'en', { numeric: true }),
  stored: (a, b) => a.replay - b.replay,
};

// The classes that are asked for, in their order: sorting is stable, and they come in that of their first evaluation.
const chosenClasses = (history, order, find) => {
  const wanted = find.trim().toLocaleLowerCase();
  const found = wanted === '' ? [...history.classes]
    : history.classes.filter((each) => shown(each.name).toLocaleLowerCase().includes(wanted));
  return order === 'seen' ? found : found.sort(ORDERS[order]);
};

// A class's accuracy at a column; null: it was not known then.
const accuracyAt = (each, column) => {
  const units = each.course[column];
  return units === null || units === undefined ? null : units / UNIT;
};

// The place of the last of these ascending numbers that is not above `wanted`; -1: all are.
const lastUpTo = (numbers, wanted) => {
  let low = 0;
  let high = numbers.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (numbers[middle] <= wanted) low = middle + 1; else high = middle;
  }
  return low - 1;
};

// The baseline's newest figure by then.
const baselineAt = (history, name, records) => {
  const course = history.baseline && history.baseline.course;
  if (!course) return null;
  const place = lastUpTo(course.at, records);
  return place < 0 ? null : course[name][place];
};

const columnsOf = (history) => (history && history.course ? history.course.at : []);
