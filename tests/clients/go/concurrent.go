package main

import (
	"context"
	"strconv"
	"sync"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

func session(w *world) *concurrency.Session {
	s, err := concurrency.NewSession(w.client, concurrency.WithTTL(30))
	must(err)
	return s
}

func mutex(w *world) {
	first, second := session(w), session(w)
	held, wanted := concurrency.NewMutex(first, "/lock"), concurrency.NewMutex(second, "/lock")
	must(held.Lock(w.ctx))
	say("try: %s", told(wanted.TryLock(w.ctx)))
	done := make(chan error)
	go func() { done <- wanted.Lock(w.ctx) }()
	must(held.Unlock(w.ctx))
	must(<-done)
	say("handed over")
	// The one who ends without unlocking lets go as well.
	go func() { done <- held.Lock(w.ctx) }()
	must(second.Close())
	must(<-done)
	say("taken over")
	must(first.Close())
	w.get("/lock", clientv3.WithPrefix(), clientv3.WithCountOnly())

	// However they meet, only one counts at a time.
	counter := 0
	var all sync.WaitGroup
	for i := 0; i < 5; i++ {
		all.Add(1)
		go func() {
			defer all.Done()
			s := session(w)
			defer s.Close()
			locker := concurrency.NewLocker(s, "/count")
			for j := 0; j < 4; j++ {
				locker.Lock()
				counter++
				locker.Unlock()
			}
		}()
	}
	all.Wait()
	say("counted: %d", counter)
}

func election(w *world) {
	first, second := session(w), session(w)
	leader, rival := concurrency.NewElection(first, "/elect"), concurrency.NewElection(second, "/elect")
	_, err := leader.Leader(w.ctx)
	say("nobody: %s", told(err))
	must(leader.Campaign(w.ctx, "first"))
	ctx, cancel := context.WithCancel(w.ctx)
	defer cancel()
	observed := rival.Observe(ctx)
	say("observed: %s", (<-observed).Kvs[0].Value)
	must(leader.Proclaim(w.ctx, "first again"))
	say("observed: %s", (<-observed).Kvs[0].Value)
	done := make(chan error)
	go func() { done <- rival.Campaign(w.ctx, "second") }()
	must(leader.Resign(w.ctx))
	must(<-done)
	say("observed: %s", (<-observed).Kvs[0].Value)
	now, err := leader.Leader(w.ctx)
	must(err)
	say("leader: %s", now.Kvs[0].Value)
	say("proclaim: %s", told(leader.Proclaim(w.ctx, "no")))
	must(second.Close())
	_, err = leader.Leader(w.ctx)
	say("nobody: %s", told(err))
	must(first.Close())
}

func stm(w *world) {
	put := func(key string, n int) {
		_, err := w.client.Put(w.ctx, key, strconv.Itoa(n))
		must(err)
	}
	number := func(s string) int {
		n, err := strconv.Atoi(s)
		must(err)
		return n
	}
	levels := []concurrency.Isolation{concurrency.SerializableSnapshot, concurrency.Serializable, concurrency.RepeatableReads}
	for _, level := range levels {
		put("stm/a", 100)
		put("stm/b", 0)
		var all sync.WaitGroup
		for i := 0; i < 4; i++ {
			all.Add(1)
			go func() {
				defer all.Done()
				for j := 0; j < 5; j++ {
					_, err := concurrency.NewSTM(w.client, func(s concurrency.STM) error {
						a, b := number(s.Get("stm/a")), number(s.Get("stm/b"))
						s.Put("stm/a", strconv.Itoa(a-1))
						s.Put("stm/b", strconv.Itoa(b+1))
						return nil
					}, concurrency.WithIsolation(level), concurrency.WithAbortContext(w.ctx))
					must(err)
				}
			}()
		}
		all.Wait()
		a, err := w.client.Get(w.ctx, "stm/a")
		must(err)
		b, err := w.client.Get(w.ctx, "stm/b")
		must(err)
		say("isolation %d: %s and %s", level, a.Kvs[0].Value, b.Kvs[0].Value)
	}
	_, err := w.client.Delete(w.ctx, "stm/", clientv3.WithPrefix())
	must(err)
}
