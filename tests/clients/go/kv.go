package main

import (
	"bytes"
	"context"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

func kv(w *world) {
	w.put("a", "1")
	w.put("a", "2", clientv3.WithPrevKV())
	w.put("b", "1")
	w.put("c", "1")
	w.put("missing", "", clientv3.WithIgnoreValue())
	w.put("b", "", clientv3.WithIgnoreValue())
	w.put("", "empty key")
	w.get("a")
	w.get("a", clientv3.WithRev(2))
	w.get("a", clientv3.WithRev(1000))
	w.get("a", clientv3.WithPrefix(), clientv3.WithSerializable())
	w.get("a", clientv3.WithRange("c"))
	w.get("b", clientv3.WithFromKey())
	w.get("", clientv3.WithPrefix(), clientv3.WithKeysOnly(), clientv3.WithLimit(2))
	w.get("", clientv3.WithPrefix(), clientv3.WithCountOnly())
	w.get("", clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByModRevision, clientv3.SortDescend))
	w.get("", clientv3.WithPrefix(), clientv3.WithMinModRev(3), clientv3.WithMaxCreateRev(4))
	w.get("", clientv3.WithLastRev()...)
	w.get("", clientv3.WithFirstKey()...)
	w.del("c", clientv3.WithPrevKV())
	w.del("c")
	w.put("big", strings.Repeat("x", 1<<20))
	w.put("bigger", strings.Repeat("x", 2<<20))
	w.get("big")
	w.del("", clientv3.WithPrefix(), clientv3.WithPrevKV())

	// A canceled call is the client's own business and harms nobody.
	ctx, cancel := context.WithTimeout(w.ctx, time.Nanosecond)
	_, err := w.client.Get(ctx, "a")
	cancel()
	say("late: %v", err != nil)

	value := bytes.Repeat([]byte{0, 255}, 10)
	_, err = w.client.Put(w.ctx, "\x00binary", string(value))
	must(err)
	r, err := w.client.Get(w.ctx, "\x00binary")
	must(err)
	say("binary: %v", bytes.Equal(r.Kvs[0].Value, value))

	r2, err := w.client.Do(w.ctx, clientv3.OpGet("\x00binary", clientv3.WithCountOnly()))
	must(err)
	say("do: %d", r2.Get().Count)
	w.del("\x00binary")
}

func txn(w *world) {
	commit := func(what string, t clientv3.Txn) {
		r, err := t.Commit()
		if err != nil {
			say("%s: %s", what, told(err))
			return
		}
		say("%s: rev %d succeeded %v", what, r.Header.Revision, r.Succeeded)
		responses(w, "  ", (*clientv3.TxnResponse)(r))
	}
	create := func(key, value string) clientv3.Txn {
		return w.client.Txn(w.ctx).
			If(clientv3.Compare(clientv3.CreateRevision(key), "=", 0)).
			Then(clientv3.OpPut(key, value)).
			Else(clientv3.OpGet(key))
	}
	commit("create", create("t", "1"))
	commit("create again", create("t", "2"))
	commit("compare", w.client.Txn(w.ctx).
		If(
			clientv3.Compare(clientv3.Value("t"), "=", "1"),
			clientv3.Compare(clientv3.Version("t"), ">", 0),
			clientv3.Compare(clientv3.ModRevision("t"), "!=", 1),
			clientv3.Compare(clientv3.LeaseValue("t"), "=", 0),
			clientv3.Compare(clientv3.Value("t"), "<", "z").WithPrefix(),
		).
		Then(clientv3.OpPut("t/1", "x"), clientv3.OpPut("t/2", "y", clientv3.WithPrevKV()), clientv3.OpGet("t", clientv3.WithPrefix())).
		Else(clientv3.OpGet("t")))
	commit("nested", w.client.Txn(w.ctx).
		If(clientv3.Compare(clientv3.Value("t"), "=", "1")).
		Then(
			clientv3.OpTxn(
				[]clientv3.Cmp{clientv3.Compare(clientv3.Value("t/1"), "=", "no")},
				[]clientv3.Op{clientv3.OpPut("t/3", "no")},
				[]clientv3.Op{
					clientv3.OpPut("t/3", "yes"),
					clientv3.OpTxn(nil, []clientv3.Op{clientv3.OpDelete("t/1", clientv3.WithPrevKV())}, nil),
				},
			),
			clientv3.OpGet("t/", clientv3.WithPrefix()),
		))
	commit("twice the same key", w.client.Txn(w.ctx).Then(clientv3.OpPut("t", "1"), clientv3.OpPut("t", "2")))
	commit("put and delete", w.client.Txn(w.ctx).Then(clientv3.OpPut("t/x", "1"), clientv3.OpDelete("t", clientv3.WithPrefix())))
	many := make([]clientv3.Op, 129)
	for i := range many {
		many[i] = clientv3.OpGet("t")
	}
	commit("too many", w.client.Txn(w.ctx).Then(many...))
	commit("empty", w.client.Txn(w.ctx))
	commit("read only", w.client.Txn(w.ctx).Then(clientv3.OpGet("t", clientv3.WithPrefix(), clientv3.WithLimit(1))))
	commit("at a future revision", w.client.Txn(w.ctx).Then(clientv3.OpGet("t", clientv3.WithRev(1<<40))))
	w.del("t", clientv3.WithPrefix())
}

func responses(w *world, indent string, r *clientv3.TxnResponse) {
	for _, op := range r.Responses {
		switch {
		case op.GetResponsePut() != nil:
			say("%sput prev %s", indent, text(op.GetResponsePut().PrevKv))
		case op.GetResponseRange() != nil:
			say("%sget count %d more %v %s", indent, op.GetResponseRange().Count, op.GetResponseRange().More, list(op.GetResponseRange().Kvs))
		case op.GetResponseDeleteRange() != nil:
			say("%sdelete deleted %d %s", indent, op.GetResponseDeleteRange().Deleted, list(op.GetResponseDeleteRange().PrevKvs))
		case op.GetResponseTxn() != nil:
			say("%stxn succeeded %v", indent, op.GetResponseTxn().Succeeded)
			responses(w, indent+"  ", (*clientv3.TxnResponse)(op.GetResponseTxn()))
		}
	}
}

func compaction(w *world) {
	first := w.put("compacted", "1").Header.Revision
	w.put("compacted", "2")
	last := w.put("compacted", "3").Header.Revision
	_, err := w.client.Compact(w.ctx, last, clientv3.WithCompactPhysical())
	say("compact: %s", told(err))
	_, err = w.client.Compact(w.ctx, first)
	say("compact again: %s", told(err))
	_, err = w.client.Compact(w.ctx, last+1000)
	say("compact the future: %s", told(err))
	w.get("compacted", clientv3.WithRev(first))
	w.get("compacted", clientv3.WithRev(last))
	ch := w.client.Watch(w.ctx, "compacted", clientv3.WithRev(first))
	r, _ := next(ch)
	say("watch: %s, compacted at %d", told(r.Err()), r.CompactRevision)
	_, open := next(ch)
	say("open: %v", open)
	w.del("compacted")
}
