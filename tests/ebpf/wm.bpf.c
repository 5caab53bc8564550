// What l4-vip/src/kernel/ebpf/programs.rs assembles, in C, for readers. Nothing of it is built into Waymark; a test
// compiles it where clang-14 exists and sees that both versions give the same answers.
//
// The assembled programs copy a service and a backend before they use them and look whose they are, because the kernel
// may give an element to another key while a program looks at it; that is left out here.
//
// Only connect4, getpeername4 and sock_ops are spelt out: the IPv6 programs differ in the width of the address, sendmsg
// in that it looks first at what the socket keeps of its last pick, and then for a known flow; recvmsg turns that round.
// Both are for UDP sockets, and what connect4 keeps of those is left out, too.

#include <linux/bpf.h>
#include <linux/errno.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

// The address as IPv4-mapped IPv6; the port as in the packet in the low half of a word, the protocol above it.
struct frontend { __u32 address[4]; __u32 port_and_protocol; };
struct service { __u32 version, n_slots, id, padding; __u64 affinity_ns; struct frontend frontend; __u32 more_padding; };
struct slot_key { __u32 version, index; };
struct slot { __u32 first, second, threshold; };
struct backend { __u32 address[4]; __u32 port, weight, service; };
struct counters { __u64 n_connections, n_refused, n_failed, bytes_in, bytes_out; };
struct peer { __u64 cookie; struct frontend vip; __u32 address[4]; __u32 port, backend, service; };
struct client { __u64 namespace; __u32 address[4]; __u32 service, padding; };
struct last { __u64 ns; __u32 backend, padding; };

#define MAP(map, kind, k, v, n, f) \
	struct { __uint(type, kind); __type(key, k); __type(value, v); __uint(max_entries, n); __uint(map_flags, f); } map SEC(".maps")
MAP(services, BPF_MAP_TYPE_HASH, struct frontend, struct service, 65536, BPF_F_NO_PREALLOC);
MAP(slots, BPF_MAP_TYPE_HASH, struct slot_key, struct slot, 524288, BPF_F_NO_PREALLOC);
MAP(backends, BPF_MAP_TYPE_HASH, __u32, struct backend, 262144, BPF_F_NO_PREALLOC);
MAP(counters, BPF_MAP_TYPE_PERCPU_HASH, __u32, struct counters, 393216, BPF_F_NO_PREALLOC);
MAP(peers, BPF_MAP_TYPE_ARRAY, __u32, struct peer, 262144, 0);
MAP(affinity, BPF_MAP_TYPE_LRU_HASH, struct client, struct last, 65536, 0);

static __always_inline struct counters *counters_of(__u32 id)
{
	struct counters *found = bpf_map_lookup_elem(&counters, &id), none = {};
	if (found)
		return found;
	// It fails when another CPU was first.
	bpf_map_update_elem(&counters, &id, &none, BPF_NOEXIST);
	return bpf_map_lookup_elem(&counters, &id);
}

#define COUNT(id, counter) \
	do { \
		struct counters *c = counters_of(id); \
		if (c) \
			__sync_fetch_and_add(&c->counter, 1); \
	} while (0)

// Cookies count up, so a place is taken away by a socket that is so many sockets younger.
static struct peer *place_of(__u64 cookie)
{
	__u32 index = cookie & (262144 - 1);
	return bpf_map_lookup_elem(&peers, &index);
}

SEC("cgroup/connect4")
int connect4(struct bpf_sock_addr *ctx)
{
	if (ctx->protocol != IPPROTO_TCP && ctx->protocol != IPPROTO_UDP)
		return 1;
	struct frontend vip = { .address = { 0, 0, bpf_htonl(0xffff), ctx->user_ip4 } };
	vip.port_and_protocol = ctx->user_port | ctx->protocol << 16;
	struct client client = {};
	struct service *service;
	struct backend *backend = 0;
	__u32 id = 0;

	// A change may take away what was read a moment ago; then the service is read again.
	for (int attempt = 0; attempt < 4 && !backend; attempt++) {
		service = bpf_map_lookup_elem(&services, &vip);
		if (!service)
			// The assembled program refuses what is in a pool here.
			return 1;
		if (service->affinity_ns) {
			client.namespace = bpf_get_netns_cookie(ctx);
			client.service = service->id;
			if (ctx->sk && ctx->sk->src_ip4) {
				client.address[2] = bpf_htonl(0xffff);
				client.address[3] = ctx->sk->src_ip4;
			}
			struct last *last = bpf_map_lookup_elem(&affinity, &client);
			if (last && bpf_ktime_get_ns() - last->ns <= service->affinity_ns) {
				id = last->backend;
				backend = bpf_map_lookup_elem(&backends, &id);
				if (backend && !backend->weight)
					backend = 0;
			}
		}
		if (!backend) {
			if (!service->n_slots)
				break;
			struct slot_key key = { service->version, bpf_get_prandom_u32() % service->n_slots };
			struct slot *slot = bpf_map_lookup_elem(&slots, &key);
			if (!slot)
				continue;
			id = slot->threshold >= bpf_get_prandom_u32() ? slot->first : slot->second;
			backend = bpf_map_lookup_elem(&backends, &id);
		}
	}
	if (!backend) {
		id = service->id;
		COUNT(id, n_refused);
		bpf_set_retval(-ECONNREFUSED);
		return 0;
	}
	if (service->affinity_ns) {
		struct last last = { .ns = bpf_ktime_get_ns(), .backend = id };
		bpf_map_update_elem(&affinity, &client, &last, BPF_ANY);
	}
	COUNT(id, n_connections);
	__u64 cookie = bpf_get_socket_cookie(ctx);
	struct peer *peer = place_of(cookie);
	if (peer) {
		peer->cookie = 0;
		peer->vip = vip;
		__builtin_memcpy(peer->address, backend->address, sizeof(peer->address));
		peer->port = backend->port;
		peer->backend = id;
		peer->service = service->id;
		peer->cookie = cookie;
	}
	ctx->user_ip4 = backend->address[3];
	ctx->user_port = backend->port;
	return 1;
}

SEC("cgroup/getpeername4")
int getpeername4(struct bpf_sock_addr *ctx)
{
	__u64 cookie = bpf_get_socket_cookie(ctx);
	struct peer *peer = place_of(cookie);
	if (peer && peer->cookie == cookie && peer->port == ctx->user_port && peer->address[3] == ctx->user_ip4) {
		ctx->user_ip4 = peer->vip.address[3];
		ctx->user_port = peer->vip.port_and_protocol & 0xffff;
	}
	return 1;
}

// Changes of state are told of sockets that connect4 gave a backend, and the last of them is counted.
SEC("sockops")
int sock_ops(struct bpf_sock_ops *ctx)
{
	if (ctx->op != BPF_SOCK_OPS_TCP_CONNECT_CB && ctx->op != BPF_SOCK_OPS_STATE_CB)
		return 1;
	if (ctx->op == BPF_SOCK_OPS_STATE_CB && (ctx->args[1] != BPF_TCP_CLOSE || ctx->args[0] == BPF_TCP_CLOSE))
		return 1;
	__u64 cookie = bpf_get_socket_cookie(ctx);
	struct peer *peer = place_of(cookie);
	if (!peer || peer->cookie != cookie)
		return 1;
	if (ctx->op == BPF_SOCK_OPS_TCP_CONNECT_CB) {
		bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
		return 1;
	}
	__u32 backend = peer->backend;
	struct counters *c = bpf_map_lookup_elem(&counters, &backend);
	if (!c)
		// The counters of a backend that was removed have been added up.
		c = counters_of(peer->service);
	if (!c)
		return 1;
	if (ctx->args[0] == BPF_TCP_SYN_SENT) {
		__sync_fetch_and_add(&c->n_failed, 1);
	} else {
		// The SYN counts as a byte.
		__sync_fetch_and_add(&c->bytes_in, ctx->bytes_acked - 1);
		__sync_fetch_and_add(&c->bytes_out, ctx->bytes_received);
	}
	return 1;
}

char LICENSE[] SEC("license") = "GPL";
