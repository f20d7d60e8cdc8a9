package main

import (
	"context"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/leasing"
	"go.etcd.io/etcd/client/v3/mirror"
	"go.etcd.io/etcd/client/v3/namespace"
	"go.etcd.io/etcd/client/v3/ordering"
)

func namespaces(w *world) {
	kv := namespace.NewKV(w.client.KV, "ns/")
	watcher := namespace.NewWatcher(w.client.Watcher, "ns/")
	lessor := namespace.NewLease(w.client.Lease, "ns/")
	ch := watcher.Watch(w.ctx, "", clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	next(ch)
	grant, err := lessor.Grant(w.ctx, 60)
	must(err)
	_, err = kv.Put(w.ctx, "a", "1", clientv3.WithLease(grant.ID))
	must(err)
	r, err := kv.Get(w.ctx, "", clientv3.WithFromKey())
	must(err)
	say("inside: %d %s", len(r.Kvs), r.Kvs[0].Key)
	outside, err := w.client.Get(w.ctx, "ns/a")
	must(err)
	say("outside: %d %s", len(outside.Kvs), outside.Kvs[0].Key)
	ttl, err := lessor.TimeToLive(w.ctx, grant.ID, clientv3.WithAttachedKeys())
	must(err)
	say("keys: %s", ttl.Keys)
	_, err = kv.Txn(w.ctx).If(clientv3.Compare(clientv3.Value("a"), "=", "1")).Then(clientv3.OpDelete("a")).Commit()
	must(err)
	for seen := 0; seen < 2; {
		r, _ := next(ch)
		for _, e := range r.Events {
			say("event %s %s", e.Type, e.Kv.Key)
			seen++
		}
	}
	_, err = lessor.Revoke(w.ctx, grant.ID)
	must(err)
}

func orderings(w *world) {
	kv := ordering.NewKV(w.client.KV, func(clientv3.Op, clientv3.OpResponse, int64) error { return ordering.ErrNoGreaterRev })
	_, err := kv.Put(w.ctx, "o", "1")
	must(err)
	r, err := kv.Get(w.ctx, "o", clientv3.WithSerializable())
	must(err)
	say("ordered: %s", r.Kvs[0].Value)
	_, err = kv.Delete(w.ctx, "o")
	must(err)
}

func leasings(w *world) {
	kv, closeIt, err := leasing.NewKV(w.client, "leasing/")
	must(err)
	defer closeIt()
	other, closeOther, err := leasing.NewKV(w.client, "leasing/")
	must(err)
	defer closeOther()
	_, err = kv.Put(w.ctx, "lk", "1")
	must(err)
	for i := 0; i < 2; i++ {
		r, err := kv.Get(w.ctx, "lk")
		must(err)
		say("leased: %s", r.Kvs[0].Value)
	}
	// Another one's write takes the key back from the first.
	_, err = other.Put(w.ctx, "lk", "2")
	must(err)
	r, err := kv.Get(w.ctx, "lk")
	must(err)
	say("written by another: %s", r.Kvs[0].Value)
	t, err := other.Txn(w.ctx).If(clientv3.Compare(clientv3.Value("lk"), "=", "2")).Then(clientv3.OpPut("lk", "3")).Commit()
	must(err)
	say("txn: %v", t.Succeeded)
	r, err = kv.Get(w.ctx, "lk")
	must(err)
	say("after: %s", r.Kvs[0].Value)
	_, err = kv.Delete(w.ctx, "lk")
	must(err)
}

func mirrors(w *world) {
	for i := 0; i < 1500; i++ {
		_, err := w.client.Put(w.ctx, "mirror/"+strings.Repeat("k", i%7)+string(rune('a'+i%26)), "v")
		must(err)
	}
	ctx, cancel := context.WithCancel(w.ctx)
	defer cancel()
	syncer := mirror.NewSyncer(w.client, "mirror/", 0)
	base, failures := syncer.SyncBase(ctx)
	keys := 0
	for r := range base {
		keys += len(r.Kvs)
	}
	must(<-failures)
	say("base: %d keys", keys)
	updates := syncer.SyncUpdates(ctx)
	_, err := w.client.Put(w.ctx, "mirror/new", "v")
	must(err)
	r, _ := next(updates)
	say("update: %s", r.Events[0].Kv.Key)
	_, err = w.client.Delete(w.ctx, "mirror/", clientv3.WithPrefix())
	must(err)
}
