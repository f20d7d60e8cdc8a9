"""The everyday work of python-etcd: `python_etcd.py HOST PORT`. Ends with a traceback where something else happens."""

import sys
import threading

import etcd

host, port = sys.argv[1], int(sys.argv[2])
client = etcd.Client(host=host, port=port, read_timeout=30)


def refused(what, error):
    try:
        what()
    except error:
        return
    raise AssertionError(f"{error.__name__} was expected")


# Write, read, update, delete.
made = client.write("/app/config", "one")
assert made.action == "set" and made.newKey and made.value == "one"
assert client.read("/app/config").value == "one"
assert client.get("/app/config").modifiedIndex == made.modifiedIndex
refused(lambda: client.write("/app/config", "two", prevExist=False), etcd.EtcdAlreadyExist)
swapped = client.test_and_set("/app/config", "two", "one")
assert swapped.action == "compareAndSwap" and swapped._prev_node.value == "one"
refused(lambda: client.test_and_set("/app/config", "three", "one"), etcd.EtcdCompareFailed)
refused(lambda: client.write("/app/config", "three", prevIndex=1), etcd.EtcdCompareFailed)
node = client.read("/app/config")
node.value = "three"
client.update(node)
assert client.read("/app/config", quorum=True).value == "three"
refused(lambda: client.read("/nothing"), etcd.EtcdKeyNotFound)

# Directories, in order, with all below.
client.write("/app/dir", None, dir=True)
for name in "cab":
    client.write(f"/app/dir/{name}", name)
listed = client.read("/app", recursive=True, sorted=True)
assert [leaf.key for leaf in listed.leaves] == ["/app/config", "/app/dir/a", "/app/dir/b", "/app/dir/c"]
refused(lambda: client.delete("/app/dir"), etcd.EtcdNotFile)
refused(lambda: client.delete("/app/dir", dir=True), etcd.EtcdDirNotEmpty)
first, second = (client.write("/queue", text, append=True) for text in ("x", "y"))
assert first.key < second.key
assert [leaf.value for leaf in client.read("/queue", sorted=True).leaves] == ["x", "y"]

# A time to live, and its renewal.
client.write("/session", "here", ttl=100)
assert 90 < client.read("/session").ttl <= 100
client.refresh("/session", ttl=200)
assert 190 < client.read("/session").ttl <= 200
client.write("/brief", "gone", ttl=1)
assert client.watch("/brief").action == "expire"

# Waiting: for what was, and for what comes.
past = client.read("/app/config", wait=True, waitIndex=made.modifiedIndex)
assert past.value == "one"
waiting = threading.Thread(target=lambda: told.append(client.watch("/app", recursive=True)))
told, before = [], client.read("/app").etcd_index
waiting.start()
told_by_index = []
client.write("/app/config", "four")
told_by_index.append(client.watch("/app", index=before + 1, recursive=True))
assert told_by_index[0].value == "four"
client.write("/app/config", "five")  # whichever of the two the thread has begun to wait for
client.write("/app/config", "six")
waiting.join(30)
assert told and told[0].key == "/app/config"
events = client.eternal_watch("/app", index=before + 1, recursive=True)
assert [next(events).value for _ in range(3)] == ["four", "five", "six"]

# A lock that two want.
one, other = etcd.Lock(client, "job"), etcd.Lock(client, "job")
assert one.acquire(lock_ttl=60)
assert not other.acquire(blocking=False)
one.release()
assert other.acquire(blocking=False)
other.release()

# The cluster.
assert client.machines and client.leader["clientURLs"] and len(client.members) == 1
assert client.stats["state"] == "StateLeader" and client.store_stats["setsSuccess"] > 0
client.delete("/app", recursive=True)
refused(lambda: client.read("/app"), etcd.EtcdKeyNotFound)
print("python-etcd works")
