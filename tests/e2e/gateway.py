"""Asks the JSON gateway of the etcd at HOST PORT with nothing but Python's standard library, as scripts do."""

import base64
import http.client
import json
import sys
import threading

host, port = sys.argv[1], int(sys.argv[2])
b64 = lambda text: base64.b64encode(text.encode()).decode()


def post(path, message):
    connection = http.client.HTTPConnection(host, port, timeout=20)
    connection.request("POST", path, json.dumps(message), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


# What is written can be read, and is told to who watches.
events = []
watch = http.client.HTTPConnection(host, port, timeout=20)
watch.request("POST", "/v3/watch", json.dumps({"create_request": {"key": b64("greeting")}}))
answer = watch.getresponse()
assert answer.status == 200, answer.status
assert json.loads(answer.readline())["result"]["created"] is True
listener = threading.Thread(target=lambda: events.append(json.loads(answer.readline())["result"]["events"][0]))
listener.start()
status, put = post("/v3/kv/put", {"key": b64("greeting"), "value": b64("hello")})
assert status == 200, put
listener.join(20)
assert base64.b64decode(events[0]["kv"]["value"]) == b"hello", events
status, found = post("/v3/kv/range", {"key": b64("greeting")})
assert (status, found["count"]) == (200, "1"), found
assert found["kvs"][0]["mod_revision"] == put["header"]["revision"] == events[0]["kv"]["mod_revision"]

# A transaction with a branch, and a lease with its key.
compare = {"key": b64("greeting"), "target": "VERSION", "result": "EQUAL", "version": "1"}
status, txn = post("/v3/kv/txn", {"compare": [compare], "success": [{"request_delete_range": {"key": b64("greeting")}}]})
assert txn["succeeded"] and txn["responses"][0]["response_delete_range"]["deleted"] == "1", txn
status, lease = post("/v3/lease/grant", {"TTL": 100})
post("/v3/kv/put", {"key": b64("leased"), "lease": lease["ID"]})
status, left = post("/v3/lease/timetolive", {"ID": lease["ID"], "keys": True})
assert left["keys"] == [b64("leased")] and left["grantedTTL"] == "100", left
assert post("/v3/lease/revoke", {"ID": lease["ID"]})[0] == 200

# Errors have a status, a code and a message.
assert post("/v3/kv/put", {}) == (400, {"code": 3, "message": "etcdserver: key is not provided"})
assert post("/v3/lease/revoke", {"ID": 1}) == (404, {"code": 5, "message": "etcdserver: requested lease not found"})
print("ok")
