// Puts the parts together: a report shows what stands in the document, a live page what the learner says.

const STATES = {
  starting: 'starting',
  learning: 'learning',
  idle: 'idle: all that came is learnt',
  away: 'the brokers do not answer: nothing is learnt, and nothing is lost',
  relearning: 'learning once more after an adoption',
};

const embedded = JSON.parse(byId('embedded').textContent);
const isLive = embedded === null;
let history = null;
let status = null;

const tiles = makeTiles();
const classTable = makeClassTable(byId('classes'));
const momentTable = makeMomentTable(byId('moments'), byId('moments-body'));
const eventTable = makeEventTable(byId('events'));
const versionTable = makeVersionTable(byId('versions'));
const picture = makePicture((classes) => {
  classTable(history, classes);
  momentTable(history, classes);
});

const showState = (state, text) => {
  const place = byId('state');
  if (place.dataset.text === text) return; // it is read aloud where it changes
  place.dataset.text = text;
  place.replaceChildren(element('span', { class: 'state-dot', 'data-state': state, 'aria-hidden': 'true' }), text);
};

const showStream = (stream, branch) => setText(byId('stream'), shown(stream) + (branch === 'main' ? '' : ` (${shown(branch)})`));

const leadOf = () => {
  const { course, classes } = history;
  const what = 'Each row is a class, each column an evaluation on records that were held out and never trained on. ';
  const thinned = course && course.at.length < course.made
    ? `Of ${count(course.made)} evaluations ${count(course.at.length)} are shown, evenly spaced, and the newest. ` : '';
  const some = classes.length > CLASSES_A_PAGE
    ? `Of ${count(classes.length)} classes ${CLASSES_A_PAGE} are shown at a time, in the order that you choose.` : '';
  return what + thinned + some;
};

const problemOf = () => [
  history.events.problem === null ? '' : `Events are missing: ${shown(history.events.problem)}`,
  history.events.left_out ? 'Older events are left out.' : '',
  history.baseline && history.baseline.problem ? `The baseline cannot be shown as it is now: ${shown(history.baseline.problem)}` : '',
].filter(Boolean).join(' ');

const showHistory = (newer) => {
  history = newer;
  showStream(history.stream, history.branch);
  const hasBaseline = Boolean(history.baseline && history.baseline.course);
  setHidden(byId('baseline-key'), !hasBaseline);
  if (hasBaseline) setText(byId('baseline-title'), shown(history.baseline.title));
  setText(byId('lead'), leadOf());
  setText(byId('empty'), history.course === null ? 'The learner is loading its state.'
    : 'Nothing was evaluated yet: the picture begins with the first evaluation on held-out records.');
  const problem = problemOf();
  setText(byId('events-problem'), problem);
  setHidden(byId('events-problem'), problem === '');
  picture(history);
  eventTable([...history.events.lines].reverse());
  versionTable([...history.versions].reverse());
  if (status === null) tiles.ofHistory(history); else tiles.ofStatus(status, history);
};

const showStatus = (newer) => {
  status = newer;
  showStream(status.stream, status.branch);
  const toGo = status.state === 'relearning' ? ` · ${plural(status.relearning_records, 'record', 'records')} to go` : '';
  setText(byId('as-of'), `${toGo} · ${clock(status.time)}`.trim());
  tiles.ofStatus(status, history);
  showState(status.state, STATES[status.state] ?? shown(status.state));
};

// Since when each of the two addresses does not answer.
const lostSince = { status: null, history: null };

const showTrouble = () => {
  const { status: all, history: some } = lostSince;
  const rest = 'What stands here is from before; the page tries again by itself.';
  const text = all !== null ? `The learner cannot be reached since ${moment(all)}. ${rest}`
    : some !== null ? `The learner's history cannot be had since ${moment(some)}. ${rest}` : '';
  setText(byId('trouble'), text);
  setHidden(byId('trouble'), text === '');
};

const reached = (name) => {
  if (lostSince[name] === null) return;
  lostSince[name] = null;
  showTrouble();
};

const lost = (name) => () => {
  lostSince[name] ??= Date.now() / 1000;
  if (name === 'status') showState('lost', 'cannot be reached');
  showTrouble();
};

const showReport = (report) => {
  showHistory(report);
  showState('report', 'a report');
  setText(byId('as-of'), `· made ${moment(report.made_at)}`);
};

if (isLive) {
  showState('starting', 'asking the learner');
  const ask = (name, seconds, show) => makePoller({
    url: name,
    seconds,
    lost: lost(name),
    taken: (said) => {
      reached(name);
      if (said !== null) show(said);
    },
  });
  ask('history', 5, showHistory);
  ask('status', 2, showStatus);
} else {
  showReport(embedded);
}
setText(byId('about'), 'Accuracy is that on records held out by a hash of what they show. Forgotten is the best accuracy that a '
  + 'class ever had minus the one now. Classes of which too few records are held out stay out of the averages.');
