package main

import (
	"context"
	"fmt"
	"strconv"

	clientv3 "go.etcd.io/etcd/client/v3"
)

const registry = "/registry/pods/"

// What a kube-apiserver asks of its etcd: objects are created, updated and deleted under a comparison of their revision, lists
// are read in pages at one revision, watches go on from a list's revision, and history is compacted by agreement.
func kubernetes(w *world) {
	// Features are told from the version, and a server that does not answer is not healthy.
	st, err := w.client.Status(w.ctx, w.endpoints[0])
	must(err)
	major, minor := 0, 0
	_, err = fmt.Sscanf(st.Version, "%d.%d.", &major, &minor)
	must(err)
	say("progress can be requested: %v", major > 3 || minor > 4 || st.Version >= "3.4.31")
	say("size: %v", st.DbSize > 0)
	w.get("health")
	l, err := w.client.MemberList(w.ctx)
	must(err)
	say("members: %d", len(l.Members))

	create := func(key, value string, ops ...clientv3.OpOption) int64 {
		r, err := w.client.Txn(w.ctx).
			If(clientv3.Compare(clientv3.ModRevision(key), "=", 0)).
			Then(clientv3.OpPut(key, value, ops...)).
			Commit()
		must(err)
		say("create %s: %v", key, r.Succeeded)
		return r.Header.Revision
	}
	update := func(key, value string, expected int64, ops ...clientv3.OpOption) int64 {
		r, err := w.client.Txn(w.ctx).
			If(clientv3.Compare(clientv3.ModRevision(key), "=", expected)).
			Then(clientv3.OpPut(key, value, ops...)).
			Else(clientv3.OpGet(key)).
			Commit()
		must(err)
		say("update %s: %v", key, r.Succeeded)
		if !r.Succeeded {
			say("  is %s", list(r.Responses[0].GetResponseRange().Kvs))
		}
		return r.Header.Revision
	}
	remove := func(key string, expected int64) {
		r, err := w.client.Txn(w.ctx).
			If(clientv3.Compare(clientv3.ModRevision(key), "=", expected)).
			Then(clientv3.OpDelete(key)).
			Else(clientv3.OpGet(key)).
			Commit()
		must(err)
		say("delete %s: %v", key, r.Succeeded)
	}

	first := create(registry+"default/a", "1")
	create(registry+"default/a", "2")
	second := update(registry+"default/a", "2", first)
	update(registry+"default/a", "3", first)
	for i := 0; i < 25; i++ {
		create(fmt.Sprintf("%skube-system/%02d", registry, i), strconv.Itoa(i))
	}

	// A list in pages sees one revision, whatever is written meanwhile.
	key, rev, pages := registry, int64(0), 0
	for {
		r, err := w.client.Get(w.ctx, key, clientv3.WithRange(clientv3.GetPrefixRangeEnd(registry)), clientv3.WithLimit(10), clientv3.WithRev(rev))
		must(err)
		if rev == 0 {
			rev = r.Header.Revision
		}
		pages++
		say("page %d: %d of %d, more %v", pages, len(r.Kvs), r.Count, r.More)
		create(fmt.Sprintf("%szz/%d", registry, pages), "late")
		if !r.More {
			break
		}
		key = string(r.Kvs[len(r.Kvs)-1].Key) + "\x00"
	}
	r, err := w.client.Get(w.ctx, registry, clientv3.WithPrefix(), clientv3.WithCountOnly())
	must(err)
	say("count: %d", r.Count)

	// The watch cache: events with what was before, and progress on the same stream.
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(w.ctx))
	ch := w.client.Watch(ctx, registry, clientv3.WithPrefix(), clientv3.WithRev(rev+1), clientv3.WithPrevKV(), clientv3.WithProgressNotify())
	third := update(registry+"default/a", "3", second)
	remove(registry+"default/a", second)
	remove(registry+"default/a", third)
	events(ch, pages+2)
	newest := w.put("elsewhere", "x").Header.Revision
	for told := false; !told; {
		must(w.client.RequestProgress(ctx))
		r, ok := next(ch)
		check(ok && r.Err() == nil, "the watch ended")
		told = r.IsProgressNotify() && r.Header.Revision >= newest
	}
	say("progress: up to date")
	cancel()

	// Events of Kubernetes live as long as a lease that many of them share.
	grant, err := w.client.Grant(w.ctx, 3600)
	must(err)
	for i := 0; i < 3; i++ {
		create(fmt.Sprintf("/registry/events/default/%d", i), "e", clientv3.WithLease(grant.ID))
	}
	ttl, err := w.client.TimeToLive(w.ctx, grant.ID, clientv3.WithAttachedKeys())
	must(err)
	say("events on the lease: %d", len(ttl.Keys))
	_, err = w.client.Revoke(w.ctx, grant.ID)
	must(err)
	r, err = w.client.Get(w.ctx, "/registry/events/", clientv3.WithPrefix(), clientv3.WithCountOnly())
	must(err)
	say("events: %d", r.Count)

	// One of several servers compacts: who finds the time of the last compaction as it remembers it.
	compact := func(remembered, rev int64) (int64, int64) {
		r, err := w.client.Txn(w.ctx).
			If(clientv3.Compare(clientv3.Version("compact_rev_key"), "=", remembered)).
			Then(clientv3.OpPut("compact_rev_key", strconv.FormatInt(rev, 10))).
			Else(clientv3.OpGet("compact_rev_key")).
			Commit()
		must(err)
		if !r.Succeeded {
			say("compacted by another: %s", r.Responses[0].GetResponseRange().Kvs[0].Value)
			return r.Responses[0].GetResponseRange().Kvs[0].Version, r.Header.Revision
		}
		if rev > 0 {
			_, err = w.client.Compact(w.ctx, rev)
			say("compact: %s", told(err))
		}
		return remembered + 1, r.Header.Revision
	}
	version, at := compact(0, 0)
	again, _ := compact(0, at)
	check(version == again, "versions %d and %d", version, again)
	version, _ = compact(version, at)
	say("version: %d", version)
	_, err = w.client.Get(w.ctx, registry, clientv3.WithPrefix(), clientv3.WithRev(rev))
	say("list at a compacted revision: %s", told(err))
	old, _ := next(w.client.Watch(w.ctx, registry, clientv3.WithPrefix(), clientv3.WithRev(rev)))
	say("watch from a compacted revision: %s", told(old.Err()))
	_, err = w.client.Delete(w.ctx, "/registry/", clientv3.WithPrefix())
	must(err)
}
