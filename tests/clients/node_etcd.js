// The everyday work of node-etcd: `node node_etcd.js URL`. Ends with an error where something else happens.

const assert = require('assert');
const Etcd = require('node-etcd');

const client = new Etcd([process.argv[2]]);
const call = (name, ...args) =>
  new Promise((resolve, reject) => client[name](...args, (error, body) => (error ? reject(error) : resolve(body))));
const refused = (code, name, ...args) =>
  call(name, ...args).then(
    () => assert.fail(`${name} ${args} had to be refused with ${code}`),
    (error) => assert.strictEqual(error.errorCode, code, JSON.stringify(error)),
  );
const event = (watcher, name) => new Promise((resolve) => watcher.once(name, resolve));

async function main() {
  // Write, read, swap, delete.
  assert.strictEqual((await call('set', 'app/config', 'one')).node.value, 'one');
  assert.strictEqual((await call('get', 'app/config')).node.value, 'one');
  await refused(105, 'set', 'app/config', 'two', { prevExist: false });
  assert.strictEqual((await call('compareAndSwap', 'app/config', 'two', 'one')).action, 'compareAndSwap');
  await refused(101, 'compareAndSwap', 'app/config', 'three', 'one');
  await refused(101, 'compareAndDelete', 'app/config', 'one');
  assert.strictEqual((await call('compareAndDelete', 'app/config', 'two')).action, 'compareAndDelete');
  await refused(100, 'get', 'app/config');

  // Directories, in order.
  await call('mkdir', 'app/dir');
  for (const name of ['c', 'a', 'b']) await call('set', `app/dir/${name}`, name);
  const listed = await call('get', 'app', { recursive: true, sorted: true });
  assert.deepStrictEqual(listed.node.nodes[0].nodes.map((node) => node.value), ['a', 'b', 'c']);
  await refused(108, 'rmdir', 'app/dir');
  const first = await call('create', 'queue', 'x');
  const second = await call('create', 'queue', 'y');
  assert(first.node.key < second.node.key);

  // A time to live.
  const session = await call('set', 'session', 'here', { ttl: 100 });
  assert(session.node.ttl > 90 && session.node.expiration);

  // Waiting, for what was and for what comes.
  const made = await call('set', 'watched', 'one');
  const past = await call('watchIndex', 'watched', made.node.modifiedIndex);
  assert.strictEqual(past.node.value, 'one');
  const watcher = client.watcher('watched', made.node.modifiedIndex + 1);
  const change = event(watcher, 'change');
  await call('set', 'watched', 'two');
  assert.strictEqual((await change).node.value, 'two');
  const removed = event(watcher, 'delete');
  await call('del', 'watched');
  assert.strictEqual((await removed).action, 'delete');
  watcher.stop();

  // The cluster.
  assert.strictEqual((await call('selfStats')).state, 'StateLeader');
  assert((await call('leaderStats')).leader);
  await call('del', 'app', { recursive: true });
  await refused(100, 'get', 'app');
  console.log('node-etcd works');
  process.exit(0);
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
