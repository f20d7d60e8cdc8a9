package main

import (
	"context"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

func watch(w *world) {
	ctx, cancel := context.WithCancel(w.ctx)
	from := w.put("w", "0").Header.Revision

	one := w.client.Watch(ctx, "w", clientv3.WithCreatedNotify(), clientv3.WithPrevKV())
	r, _ := next(one)
	say("created: %v", r.Created)
	all := w.client.Watch(ctx, "w", clientv3.WithPrefix(), clientv3.WithRev(from))
	puts := w.client.Watch(ctx, "w", clientv3.WithPrefix(), clientv3.WithRev(from), clientv3.WithFilterDelete())
	deletes := w.client.Watch(ctx, "w", clientv3.WithPrefix(), clientv3.WithRev(from), clientv3.WithFilterPut())
	old := w.client.Watch(ctx, "w", clientv3.WithPrefix(), clientv3.WithRev(from), clientv3.WithPrevKV(), clientv3.WithFragment())
	_, err := w.client.Txn(w.ctx).Then(clientv3.OpPut("w", "1"), clientv3.OpPut("w/1", "1"), clientv3.OpDelete("w/2")).Commit()
	must(err)
	w.del("w/1")
	w.put("w", "2")
	say("one")
	events(one, 2)
	say("all")
	events(all, 5)
	say("puts")
	events(puts, 4)
	say("deletes")
	events(deletes, 1)
	say("old")
	events(old, 5)

	// What is written in one transaction comes in pieces only if that was asked for, and then whole again from the client.
	big := w.client.Watch(ctx, "big/", clientv3.WithPrefix(), clientv3.WithFragment())
	for i := 0; i < 3; i++ {
		value := strings.Repeat("x", 400<<10)
		_, err = w.client.Txn(w.ctx).Then(clientv3.OpPut("big/1", value), clientv3.OpPut("big/2", value), clientv3.OpPut("big/3", value)).Commit()
		must(err)
	}
	events(big, 9)

	// Progress is told of the newest revision, on request.
	ch := w.client.Watch(clientv3.WithRequireLeader(ctx), "quiet", clientv3.WithCreatedNotify(), clientv3.WithProgressNotify())
	r, _ = next(ch)
	say("created: %v", r.Created)
	rev := w.put("w", "3").Header.Revision
	for told := false; !told; {
		must(w.client.RequestProgress(clientv3.WithRequireLeader(ctx)))
		r, _ = next(ch)
		told = r.IsProgressNotify() && r.Header.Revision == rev
	}
	say("progress: at the newest revision")

	future := w.client.Watch(ctx, "w", clientv3.WithRev(rev+2))
	w.put("w", "4")
	w.put("w", "5")
	events(future, 1)

	cancel()
	for _, ch := range []clientv3.WatchChan{one, all, future} {
		open := true
		for open {
			_, open = next(ch)
		}
	}
	say("all closed")
	w.del("w", clientv3.WithPrefix())
	w.del("big/", clientv3.WithPrefix())
}

// A watch goes on after its server was restarted, without a gap and without a repetition.
func resume(w *world) {
	ctx, cancel := context.WithCancel(w.ctx)
	defer cancel()
	ch := w.client.Watch(ctx, "resume/", clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	next(ch)
	grant, err := w.client.Grant(w.ctx, 600)
	must(err)
	alive, err := w.client.KeepAlive(ctx, grant.ID)
	must(err)
	<-alive
	w.put("resume/1", "before", clientv3.WithLease(grant.ID))
	events(ch, 1)
	w.restart()
	for {
		short, stop := context.WithTimeout(w.ctx, time.Second)
		_, err := w.client.Get(short, "resume/1")
		stop()
		if err == nil {
			break
		}
		check(w.ctx.Err() == nil, "the server does not come back: %s", told(err))
	}
	w.put("resume/2", "after")
	w.put("resume/3", "after")
	events(ch, 2)
	w.get("resume/", clientv3.WithPrefix())
	ttl, err := w.client.TimeToLive(w.ctx, grant.ID, clientv3.WithAttachedKeys())
	must(err)
	say("lease: granted %d, lives %v, keys %s", ttl.GrantedTTL, ttl.TTL > 500, ttl.Keys)
	select {
	case r := <-alive:
		say("kept alive: %v", r != nil)
	default:
		say("kept alive: true")
	}
	w.del("resume/", clientv3.WithPrefix())
}
