// Drives a server with etcd's own Go client and writes down what it sees. What is written holds no IDs, times or addresses, so
// the same program against two servers that behave alike writes the same.
//
//	go run . -endpoints http://127.0.0.1:2379 [-sections kv,txn] [-auth]
//
// The server must be fresh. A line `> restart` asks whoever started the program to restart the server, and to answer with a
// line on its standard input.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// What must happen happens within this time, or the program fails.
const patience = 20 * time.Second

type section struct {
	name string
	run  func(*world)
}

// In this order: later ones find the revisions that earlier ones leave.
var sections = []section{
	{"kv", kv},
	{"txn", txn},
	{"watch", watch},
	{"lease", lease},
	{"mutex", mutex},
	{"election", election},
	{"stm", stm},
	{"namespace", namespaces},
	{"ordering", orderings},
	{"leasing", leasings},
	{"mirror", mirrors},
	{"compaction", compaction},
	{"kubernetes", kubernetes},
	{"maintenance", maintenance},
	{"snapshot", snapshots},
	{"members", members},
	{"resume", resume},
}

type world struct {
	ctx       context.Context
	client    *clientv3.Client
	endpoints []string
	input     *bufio.Reader
}

func main() {
	endpoints := flag.String("endpoints", "http://127.0.0.1:2379", "where the server is, separated by commas")
	only := flag.String("sections", "", "run only these, separated by commas")
	withAuth := flag.Bool("auth", false, "also try users and roles")
	flag.Parse()

	w := &world{endpoints: strings.Split(*endpoints, ","), input: bufio.NewReader(os.Stdin)}
	w.client = w.connect("", "")
	defer w.client.Close()
	run := sections
	if *withAuth {
		run = append(run, section{"auth", users})
	}
	for _, s := range run {
		if *only != "" && !strings.Contains(","+*only+",", ","+s.name+",") {
			continue
		}
		fmt.Printf("== %s\n", s.name)
		ctx, cancel := context.WithTimeout(context.Background(), 3*patience)
		w.ctx = ctx
		s.run(w)
		cancel()
	}
	fmt.Println("== end")
}

func (w *world) connect(user, password string) *clientv3.Client {
	client, err := clientv3.New(clientv3.Config{
		Endpoints:   w.endpoints,
		DialTimeout: patience,
		Username:    user,
		Password:    password,
		Logger:      zap.NewNop(),
	})
	must(err)
	return client
}

// restart has the server restarted.
func (w *world) restart() {
	fmt.Println("> restart")
	_, err := w.input.ReadString('\n')
	must(err)
}

func must(err error) {
	if err != nil {
		fmt.Printf("FAILED: %s\n", told(err))
		os.Exit(1)
	}
}

func check(holds bool, what string, args ...any) {
	if !holds {
		fmt.Printf("FAILED: "+what+"\n", args...)
		os.Exit(1)
	}
}

// told is an error as its code and text.
func told(err error) string {
	if err == nil {
		return "ok"
	}
	var etcd rpctypes.EtcdError
	if errors.As(err, &etcd) {
		return fmt.Sprintf("%s: %s", etcd.Code(), etcd.Error())
	}
	if s, ok := status.FromError(err); ok && s.Code() != codes.Unknown {
		return fmt.Sprintf("%s: %s", s.Code(), s.Message())
	}
	return err.Error()
}

func say(format string, args ...any) { fmt.Printf(format+"\n", args...) }

func text(kv *mvccpb.KeyValue) string {
	if kv == nil {
		return "-"
	}
	value := string(kv.Value)
	if len(value) > 40 {
		value = fmt.Sprintf("(%d bytes)", len(value))
	}
	leased := ""
	if kv.Lease != 0 {
		leased = " leased"
	}
	return fmt.Sprintf("%s=%s c%d m%d v%d%s", kv.Key, value, kv.CreateRevision, kv.ModRevision, kv.Version, leased)
}

func list(kvs []*mvccpb.KeyValue) string {
	texts := make([]string, len(kvs))
	for i, kv := range kvs {
		texts[i] = text(kv)
	}
	return "[" + strings.Join(texts, "; ") + "]"
}

func event(e *clientv3.Event) string {
	kind := "PUT"
	if e.Type == clientv3.EventTypeDelete {
		kind = "DELETE"
	}
	if e.PrevKv != nil {
		return fmt.Sprintf("%s %s (was %s)", kind, text(e.Kv), text(e.PrevKv))
	}
	return fmt.Sprintf("%s %s", kind, text(e.Kv))
}

func (w *world) get(key string, ops ...clientv3.OpOption) *clientv3.GetResponse {
	r, err := w.client.Get(w.ctx, key, ops...)
	if err != nil {
		say("get %s: %s", key, told(err))
		return nil
	}
	say("get %s: rev %d count %d more %v %s", key, r.Header.Revision, r.Count, r.More, list(r.Kvs))
	return r
}

func (w *world) put(key, value string, ops ...clientv3.OpOption) *clientv3.PutResponse {
	r, err := w.client.Put(w.ctx, key, value, ops...)
	if err != nil {
		say("put %s: %s", key, told(err))
		return nil
	}
	say("put %s: rev %d prev %s", key, r.Header.Revision, text(r.PrevKv))
	return r
}

func (w *world) del(key string, ops ...clientv3.OpOption) {
	r, err := w.client.Delete(w.ctx, key, ops...)
	if err != nil {
		say("delete %s: %s", key, told(err))
		return
	}
	say("delete %s: rev %d deleted %d %s", key, r.Header.Revision, r.Deleted, list(r.PrevKvs))
}

// next is what a watch says next that is no bare progress.
func next(ch clientv3.WatchChan) (clientv3.WatchResponse, bool) {
	select {
	case r, ok := <-ch:
		return r, ok
	case <-time.After(patience):
		check(false, "a watch says nothing")
		panic("unreachable")
	}
}

// events reads so many events, however they are cut into responses.
func events(ch clientv3.WatchChan, count int) {
	for seen := 0; seen < count; {
		r, ok := next(ch)
		check(ok, "the watch ended")
		if r.Err() != nil {
			say("watch: %s, compacted at %d", told(r.Err()), r.CompactRevision)
			return
		}
		for _, e := range r.Events {
			say("event %s", event(e))
			seen++
		}
	}
}
