package main

import (
	"context"
	"sort"

	clientv3 "go.etcd.io/etcd/client/v3"
)

func lease(w *world) {
	grant, err := w.client.Grant(w.ctx, 120)
	must(err)
	say("granted: %d", grant.TTL)
	w.put("l/1", "x", clientv3.WithLease(grant.ID))
	w.put("l/2", "y", clientv3.WithLease(grant.ID))
	w.put("l/2", "z", clientv3.WithIgnoreLease())
	w.put("l/3", "x", clientv3.WithLease(12345))

	ttl, err := w.client.TimeToLive(w.ctx, grant.ID, clientv3.WithAttachedKeys())
	must(err)
	keys := []string{}
	for _, key := range ttl.Keys {
		keys = append(keys, string(key))
	}
	sort.Strings(keys)
	say("time to live: granted %d, lives %v, keys %v", ttl.GrantedTTL, ttl.TTL > 100, keys)
	all, err := w.client.Leases(w.ctx)
	must(err)
	say("leases: %d", len(all.Leases))

	once, err := w.client.KeepAliveOnce(w.ctx, grant.ID)
	must(err)
	say("once: %d", once.TTL)
	ctx, cancel := context.WithCancel(w.ctx)
	alive, err := w.client.KeepAlive(ctx, grant.ID)
	must(err)
	first := <-alive
	say("kept alive: %d", first.TTL)
	cancel()
	_, err = w.client.KeepAliveOnce(w.ctx, 12345)
	say("unknown: %s", told(err))

	_, err = w.client.Revoke(w.ctx, grant.ID)
	say("revoke: %s", told(err))
	_, err = w.client.Revoke(w.ctx, grant.ID)
	say("revoke again: %s", told(err))
	w.get("l/", clientv3.WithPrefix())
	ttl, err = w.client.TimeToLive(w.ctx, grant.ID)
	must(err)
	say("gone: %d", ttl.TTL)
	_, err = w.client.Grant(w.ctx, 1<<40)
	say("too long: %s", told(err))

	// A lease that nobody renews ends, and its keys with it.
	short, err := w.client.Grant(w.ctx, 1)
	must(err)
	ch := w.client.Watch(w.ctx, "l/short")
	w.put("l/short", "x", clientv3.WithLease(short.ID))
	events(ch, 2)
}
