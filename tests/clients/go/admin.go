package main

import (
	"bytes"
	"crypto/sha256"
	"io"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func maintenance(w *world) {
	endpoint := w.endpoints[0]
	st, err := w.client.Status(w.ctx, endpoint)
	must(err)
	say("status: leads %v, learner %v, applied %v, has a size %v, errors %v", st.Leader == st.Header.MemberId,
		st.IsLearner, st.RaftIndex == st.RaftAppliedIndex, st.DbSize > 0 && st.DbSizeInUse > 0 && st.DbSizeInUse <= st.DbSize, st.Errors)
	one, err := w.client.HashKV(w.ctx, endpoint, 0)
	must(err)
	other, err := w.client.HashKV(w.ctx, endpoint, one.Header.Revision)
	must(err)
	say("hash: repeats %v", one.Hash == other.Hash)
	_, err = w.client.HashKV(w.ctx, endpoint, one.Header.Revision+1000)
	say("hash of the future: %s", told(err))
	_, err = w.client.Defragment(w.ctx, endpoint)
	say("defragment: %s", told(err))
	alarms, err := w.client.AlarmList(w.ctx)
	must(err)
	say("alarms: %d", len(alarms.Alarms))
	_, err = w.client.AlarmDisarm(w.ctx, &clientv3.AlarmMember{})
	say("disarm: %s", told(err))
	_, err = w.client.MoveLeader(w.ctx, 12345)
	say("move leader: %s", told(err))
}

func snapshots(w *world) {
	_, err := w.client.Put(w.ctx, "snapshot", strings.Repeat("x", 100<<10))
	must(err)
	r, err := w.client.Snapshot(w.ctx)
	must(err)
	image, err := io.ReadAll(r)
	must(err)
	must(r.Close())
	body, sum := image[:len(image)-sha256.Size], image[len(image)-sha256.Size:]
	want := sha256.Sum256(body)
	say("snapshot: sound %v, whole pages %v, holds the value %v", bytes.Equal(sum, want[:]), len(body)%512 == 0,
		bytes.Contains(body, bytes.Repeat([]byte("x"), 100<<10)))
	w.del("snapshot")
}

func members(w *world) {
	show := func(what string, members []*etcdserverpb.Member, err error) {
		if err != nil {
			say("%s: %s", what, told(err))
			return
		}
		learners, started := 0, 0
		for _, m := range members {
			if m.IsLearner {
				learners++
			}
			if m.Name != "" {
				started++
			}
		}
		say("%s: %d members, %d learners, %d started", what, len(members), learners, started)
	}
	l, err := w.client.MemberList(w.ctx)
	must(err)
	show("list", l.Members, nil)
	// etcd 3.5.1 forgets a change that comes right after another: another entry must have been applied in between.
	pause := func() {
		_, err := w.client.Put(w.ctx, "members", "")
		must(err)
	}
	added, err := w.client.MemberAddAsLearner(w.ctx, []string{"http://127.0.0.1:9"})
	must(err)
	show("add a learner", added.Members, nil)
	say("learner: %v", added.Member.IsLearner)
	pause()
	_, err = w.client.MemberAddAsLearner(w.ctx, []string{"http://127.0.0.1:10"})
	say("another: %s", told(err))
	pause()
	// IDs are made of the URLs and the second, and who comes within the same second is told of the ID instead of the URL.
	time.Sleep(1100 * time.Millisecond)
	_, err = w.client.MemberAdd(w.ctx, []string{"http://127.0.0.1:9"})
	say("the same: %s", told(err))
	pause()
	_, err = w.client.MemberPromote(w.ctx, added.Member.ID)
	say("promote: %s", told(err))
	_, err = w.client.MemberPromote(w.ctx, l.Members[0].ID)
	say("promote a voter: %s", told(err))
	pause()
	_, err = w.client.MemberUpdate(w.ctx, added.Member.ID, []string{"http://127.0.0.1:11"})
	say("update: %s", told(err))
	pause()
	removed, err := w.client.MemberRemove(w.ctx, added.Member.ID)
	must(err)
	show("remove", removed.Members, nil)
	pause()
	_, err = w.client.MemberRemove(w.ctx, added.Member.ID)
	say("remove again: %s", told(err))
	pause()
	_, err = w.client.MemberRemove(w.ctx, 12345)
	say("remove a stranger: %s", told(err))
	_, err = w.client.MemberAdd(w.ctx, []string{"not a url"})
	say("add nonsense: %s", told(err))
}

func users(w *world) {
	c := w.client
	_, err := c.UserAdd(w.ctx, "root", "rootpw")
	say("user root: %s", told(err))
	_, err = c.RoleAdd(w.ctx, "root")
	say("role root: %s", told(err))
	_, err = c.AuthEnable(w.ctx)
	say("enable too early: %s", told(err))
	_, err = c.UserGrantRole(w.ctx, "root", "root")
	say("grant: %s", told(err))
	_, err = c.UserAdd(w.ctx, "alice", "alicepw")
	say("user alice: %s", told(err))
	_, err = c.UserAdd(w.ctx, "alice", "alicepw")
	say("again: %s", told(err))
	_, err = c.UserAdd(w.ctx, "", "x")
	say("no name: %s", told(err))
	_, err = c.RoleAdd(w.ctx, "reader")
	say("role reader: %s", told(err))
	_, err = c.RoleGrantPermission(w.ctx, "reader", "pub/", clientv3.GetPrefixRangeEnd("pub/"), clientv3.PermissionType(clientv3.PermRead))
	say("permission: %s", told(err))
	_, err = c.RoleGrantPermission(w.ctx, "reader", "own", "", clientv3.PermissionType(clientv3.PermReadWrite))
	say("permission: %s", told(err))
	_, err = c.UserGrantRole(w.ctx, "alice", "reader")
	say("grant: %s", told(err))
	_, err = c.AuthEnable(w.ctx)
	say("enable: %s", told(err))

	_, err = c.Get(w.ctx, "pub/a")
	say("nobody: %s", told(err))
	root, alice := w.connect("root", "rootpw"), w.connect("alice", "alicepw")
	defer root.Close()
	_, err = root.Put(w.ctx, "pub/a", "1")
	say("root puts: %s", told(err))
	_, err = alice.Get(w.ctx, "pub/a")
	say("alice reads: %s", told(err))
	_, err = alice.Put(w.ctx, "pub/a", "2")
	say("alice writes: %s", told(err))
	_, err = alice.Put(w.ctx, "own", "2")
	say("alice writes her own: %s", told(err))
	_, err = alice.Txn(w.ctx).Then(clientv3.OpGet("pub/a"), clientv3.OpPut("own", "3")).Commit()
	say("alice's transaction: %s", told(err))
	_, err = alice.Txn(w.ctx).Then(clientv3.OpGet("secret")).Commit()
	say("alice's other transaction: %s", told(err))
	_, err = alice.UserAdd(w.ctx, "mallory", "x")
	say("alice rules: %s", told(err))
	_, err = alice.Get(w.ctx, "", clientv3.WithPrefix())
	say("alice lists all: %s", told(err))
	for _, key := range []string{"pub/", "secret/"} {
		r, _ := next(alice.Watch(w.ctx, key, clientv3.WithPrefix(), clientv3.WithCreatedNotify()))
		say("alice watches %s: created %v, canceled %v, %s", key, r.Created, r.Canceled, told(r.Err()))
	}
	_, err = clientv3.New(clientv3.Config{Endpoints: w.endpoints, Username: "alice", Password: "wrong", DialTimeout: patience})
	say("wrong password: %s", told(err))
	_, err = root.UserChangePassword(w.ctx, "alice", "new")
	say("change: %s", told(err))
	role, err := root.RoleGet(w.ctx, "reader")
	must(err)
	for _, p := range role.Perm {
		say("reader: %s %s-%s", p.PermType, p.Key, p.RangeEnd)
	}
	_, err = root.RoleRevokePermission(w.ctx, "reader", "own", "")
	say("revoke: %s", told(err))
	must(alice.Close())
	alice = w.connect("alice", "new")
	defer alice.Close()
	_, err = alice.Put(w.ctx, "own", "4")
	say("alice writes no more: %s", told(err))
	user, err := root.UserGet(w.ctx, "alice")
	must(err)
	say("alice: %v", user.Roles)
	all, err := root.UserList(w.ctx)
	must(err)
	say("users: %v", all.Users)
	st, err := root.AuthStatus(w.ctx)
	must(err)
	say("status: %v", st.Enabled)
	_, err = root.AuthDisable(w.ctx)
	say("disable: %s", told(err))
	_, err = c.Get(w.ctx, "pub/a")
	say("everybody: %s", told(err))
}
