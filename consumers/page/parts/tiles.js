// The figures on top: how it stands now, each beside the baseline's where there is one.

const tileOf = (title) => {
  const value = element('div', { class: 'value' });
  const beside = element('div', { class: 'beside' });
  const place = element('div', { hidden: true }, element('dt', {}, title), element('dd', {}, value, beside));
  byId('tiles').append(place);
  return (text, more = '', isOther = false) => {
    setHidden(place, text === null);
    if (text === null) return;
    setText(value, text);
    setText(beside, more);
    beside.classList.toggle('other', isOther);
  };
};

const makeTiles = () => {
  const tile = {
    accuracy: tileOf('Average accuracy'),
    forgetting: tileOf('Average forgetting'),
    worst: tileOf('Worst class'),
    classes: tileOf('Classes known'),
    arriving: tileOf('Accuracy on arrival'),
    records: tileOf('Records'),
    lag: tileOf('Lag'),
    snapshot: tileOf('Next snapshot'),
    written: tileOf('Snapshot'),
    version: tileOf('Newest version'),
    network: tileOf('Parameters'),
    dead: tileOf('Dead letters'),
  };

  const learnt = (evaluated, history) => {
    const other = history && history.baseline && history.baseline.evaluated;
    const beside = (name) => (other ? `${shown(history.baseline.title)}: ${percent(other[name])}` : '');
    tile.accuracy(percent(evaluated && evaluated.accuracy), beside('accuracy'), true);
    tile.forgetting(percent(evaluated && evaluated.forgetting), beside('forgetting'), true);
  };

  const registered = (versions) => {
    const champion = versions.find((each) => each.role === 'champion');
    tile.version(versions.length ? String(versions[versions.length - 1].version) : null,
      champion ? `champion: ${champion.version}` : '');
  };

  const ofHistory = (history) => {
    const evaluated = history.evaluated;
    learnt(evaluated, history);
    const worst = evaluated && history.classes.find((each) => each.name === evaluated.worst);
    tile.worst(percent(worst ? worst.accuracy : null), worst ? shown(worst.name) : '');
    tile.classes(count(evaluated && evaluated.classes));
    tile.records(count(history.records), evaluated ? `evaluated at ${count(evaluated.at)}` : '');
    const { snapshot } = history;
    tile.written(snapshot ? `${snapshot.generation}-${snapshot.sequence}` : null, snapshot ? moment(snapshot.time) : '');
    registered(history.versions);
  };

  const ofStatus = (status, history) => {
    learnt({ accuracy: status.average_accuracy, forgetting: status.average_forgetting }, history);
    const worst = status.worst_class;
    tile.worst(percent(worst && worst.accuracy), worst ? shown(worst.name) : '');
    tile.classes(count(status.classes));
    tile.arriving(percent(status.prequential_accuracy));
    tile.records(count(status.records_consumed), rate(status.records_per_second));
    tile.lag(count(status.lag_records),
      status.event_lag_seconds === null ? 'records' : `records; the newest is ${span(status.event_lag_seconds)} old`);
    const { snapshot } = status;
    tile.snapshot(status.next_snapshot_seconds === null ? NOTHING : `in ${span(status.next_snapshot_seconds)}`,
      snapshot ? `${snapshot.generation}-${snapshot.sequence} of ${clock(snapshot.time)}` : 'none yet');
    const { network } = status;
    tile.network(network ? count(network.parameters) : null,
      network ? plural(network.sub_modules, 'sub-module', 'sub-modules') : '');
    tile.dead(count(status.dead_letters), 'since it was started');
    const versions = history ? history.versions : [];
    if (versions.length || !status.registered_version) registered(versions);
    else tile.version(String(status.registered_version.version));
  };

  return { ofHistory, ofStatus };
};
