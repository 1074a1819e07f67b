// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Egret's steering: which packets go to the engine, which to the host's kernel.
// The decisions follow ARCHITECTURE.md, "Steering", in its order. Built by build.sh; the object is
// committed beside this file. The engine sets every max_entries and fills every map.

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;

// linux/bpf.h: the parts of the kernel's interface that are used here.
enum { MAP_HASH = 1, MAP_ARRAY = 2, MAP_PERCPU_ARRAY = 6, MAP_LPM_TRIE = 11, MAP_DEVMAP = 14,
       MAP_XSKMAP = 17 };
enum { F_NO_PREALLOC = 1, F_MMAPABLE = 1024 };
enum { XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_TX, XDP_REDIRECT };
enum { TC_ACT_UNSPEC = -1, TC_ACT_SHOT = 2, TC_ACT_REDIRECT = 7 };
enum { F_INGRESS = 1 };

struct xdp_md {
	__u32 data, data_end, data_meta;
	__u32 ingress_ifindex, rx_queue_index, egress_ifindex;
};

struct __sk_buff {
	__u32 len, pkt_type, mark, queue_mapping, protocol, vlan_present, vlan_tci, vlan_proto;
	__u32 priority, ingress_ifindex, ifindex, tc_index, cb[5], hash, tc_classid;
	__u32 data, data_end;
};

static void *(*map_lookup)(void *map, const void *key) = (void *)1;
static long (*redirect)(__u32 ifindex, __u64 flags) = (void *)23;
static long (*pull_data)(struct __sk_buff *skb, __u32 len) = (void *)39;
static long (*redirect_map)(void *map, __u64 key, __u64 flags) = (void *)51;

#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))
// Headers, as on the wire.
struct ethernet { __u16 destination[3], source[3], type; };
struct ipv4 {
	__u8 version_ihl, tos;
	__u16 total_length, identification, fragment;
	__u8 ttl, protocol;
	__u16 checksum;
	__u32 source, destination;
};
struct ports { __u16 source, destination; };
struct icmp { __u8 type, code; __u16 checksum, identifier, sequence; };

enum { PROTOCOL_ICMP = 1, PROTOCOL_TCP = 6, PROTOCOL_UDP = 17 };

#define HOST16(x) __builtin_bswap16(x)
#define ETHERTYPE_IPV4 HOST16(0x0800)
#define ETHERTYPE_VLAN HOST16(0x8100)
#define ETHERTYPE_SERVICE_VLAN HOST16(0x88a8)
#define VLAN_ID HOST16(0x0fff)
#define TAG_LEN 4
// Of the type in a frame, behind the addresses.
#define OFFSET_TYPE 12
// More fragments, or an offset.
#define FRAGMENT_BITS HOST16(0x3fff)
#define FRAGMENT_OFFSET HOST16(0x1fff)

// Bytes of a frame that are looked at, at most: Ethernet, an IPv4 header with options, ICMP's, and
// the same of the packet that an ICMP error is about.
#define HEADERS_MAX (14 + 60 + 8 + 60 + 8)

// An interface that the engine serves.
enum { ROLE_INTERNAL = 1, ROLE_EXTERNAL = 2 };
struct interface { __u16 mac[3]; __u8 role, slot; };

// An external address.
enum { KIND_OWN = 0, KIND_SHARED = 1 };
struct external { __u32 kind, slot; };

struct prefix { __u32 length, address; };

struct settings { __u16 punt_mark[3], punt_mark_set; };

// Queues of an interface in `sockets`, and words of one (address, protocol) in `owned`.
#define QUEUES 64
#define PORT_WORDS 1024

enum counter {
	COUNT_PASSED,		// left to the host
	COUNT_PUNTED,		// came back from the engine
	COUNT_OWN,		// to the engine: own address
	COUNT_SHARED,		// to the engine: owned endpoint of a shared address
	COUNT_FRAGMENTS,	// to the engine: fragment to a shared address
	COUNT_INTERNAL,		// to the engine: from inside
	COUNT_SPOOFED,		// dropped: internal source outside
	COUNT_UNSERVED,		// of those to the engine: no socket there, dropped or (fragments) passed
	COUNT_UNINVITED,	// dropped: outside straight to an internal address
	COUNTERS,
};

struct {
	int (*type)[MAP_XSKMAP];
	int (*max_entries)[64];
	__u32 *key;
	__u32 *value;
} sockets SEC(".maps");

struct {
	int (*type)[MAP_HASH];
	int (*max_entries)[64];
	__u32 *key;
	struct interface *value;
} interfaces SEC(".maps");

struct {
	int (*type)[MAP_HASH];
	int (*max_entries)[64];
	__u32 *key;
	struct external *value;
} externals SEC(".maps");

struct {
	int (*type)[MAP_HASH];
	int (*max_entries)[64];
	__u32 *key;
	__u32 *value;
} locals SEC(".maps");

struct {
	int (*type)[MAP_LPM_TRIE];
	int (*max_entries)[64];
	int (*map_flags)[F_NO_PREALLOC];
	struct prefix *key;
	__u32 *value;
} internals SEC(".maps");

struct {
	int (*type)[MAP_LPM_TRIE];
	int (*max_entries)[64];
	int (*map_flags)[F_NO_PREALLOC];
	struct prefix *key;
	__u32 *value;
} bypasses SEC(".maps");

// Doors to the engine: the TAP of each interface, by the interface's slot. The kernel empties a place
// when its TAP goes away, so also when the engine dies.
struct {
	int (*type)[MAP_DEVMAP];
	int (*max_entries)[64];
	__u32 *key;
	__u32 *value;
} doors SEC(".maps");

// Interface that what the engine writes into a door leaves by, by the TAP's index.
struct {
	int (*type)[MAP_HASH];
	int (*max_entries)[64];
	__u32 *key;
	__u32 *value;
} exits SEC(".maps");

// Ownership bitmap: one bit per port or ICMP identifier, (address slot, protocol) by PORT_WORDS.
struct {
	int (*type)[MAP_ARRAY];
	int (*max_entries)[3 * PORT_WORDS];
	int (*map_flags)[F_MMAPABLE];
	__u32 *key;
	__u64 *value;
} owned SEC(".maps");

struct {
	int (*type)[MAP_ARRAY];
	int (*max_entries)[1];
	__u32 *key;
	struct settings *value;
} settings SEC(".maps");

struct {
	int (*type)[MAP_PERCPU_ARRAY];
	int (*max_entries)[COUNTERS];
	__u32 *key;
	__u64 *value;
} counters SEC(".maps");

// Punt devices: interface that what is written into a TAP is delivered to, by the TAP's index.
struct {
	int (*type)[MAP_HASH];
	int (*max_entries)[64];
	__u32 *key;
	__u32 *value;
} taps SEC(".maps");

char program_license[] SEC("license") = "Dual MIT/GPL";

INLINE void count(__u32 which)
{
	__u64 *counter = map_lookup(&counters, &which);

	if (counter)
		*counter += 1;
}

INLINE int pass(void)
{
	count(COUNT_PASSED);
	return XDP_PASS;
}

// Redirects a socket buffer into its interface's door, or does `fallback` if there is none.
INLINE int through_door(const struct interface *interface, int fallback)
{
	__u32 slot = interface->slot;
	__u32 *door = map_lookup(&doors, &slot);

	return door && redirect(*door, 0) == TC_ACT_REDIRECT ? XDP_REDIRECT : fallback;
}

// Hands the frame to the engine, or does `fallback` if no socket serves its queue. In tc there is no
// `ctx`.
INLINE int to_engine(struct xdp_md *ctx, const struct interface *interface, __u32 why, int fallback)
{
	int action = fallback;

	count(why);
	if (!ctx) {
		action = through_door(interface, fallback);
	} else {
		__u32 queue = ctx->rx_queue_index;

		if (queue < QUEUES)
			action = redirect_map(&sockets, interface->slot * QUEUES + queue, fallback);
	}
	if (action != XDP_REDIRECT)
		count(COUNT_UNSERVED);
	return action;
}

INLINE int same_mac(const __u16 *a, const __u16 *b)
{
	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2];
}

INLINE int in_prefixes(void *map, __u32 address)
{
	struct prefix key = { .length = 32, .address = address };

	return map_lookup(map, &key) != 0;
}

// Is the port or identifier (network order) of a shared address the engine's?
INLINE int is_owned(const struct external *external, __u32 protocol, __u16 port)
{
	__u32 bit = HOST16(port);
	__u32 word = (external->slot * 3 + protocol) * PORT_WORDS + bit / 64;
	__u64 *bits = map_lookup(&owned, &word);

	return bits && (*bits >> (bit % 64)) & 1;
}

// ICMP types that ask; the answer has the type 0 (echo) or the one after.
INLINE int icmp_asks(__u8 type)
{
	return type == 8 || type == 13 || type == 15 || type == 17;
}

INLINE int icmp_answers(__u8 type)
{
	return type == 0 || type == 14 || type == 16 || type == 18;
}

// Errors that a translator translates: unreachable, time exceeded, parameter problem.
INLINE int icmp_is_error(__u8 type)
{
	return type == 3 || type == 11 || type == 12;
}

// Is the packet that an ICMP error is about the engine's? It left from the address that the error
// was sent to, so its source endpoint decides.
INLINE int embedded_is_owned(const struct external *external, __u32 address, void *packet, void *end)
{
	struct ipv4 *ip = packet;
	void *transport;

	if ((void *)(ip + 1) > end || ip->version_ihl >> 4 != 4 || ip->source != address)
		return 0;
	if ((ip->version_ihl & 15) < 5 || ip->fragment & FRAGMENT_OFFSET)
		return 0;
	transport = packet + (ip->version_ihl & 15) * 4;
	if (ip->protocol == PROTOCOL_TCP || ip->protocol == PROTOCOL_UDP) {
		struct ports *ports = transport;

		if ((void *)(ports + 1) > end)
			return 0;
		return is_owned(external, ip->protocol == PROTOCOL_UDP, ports->source);
	}
	if (ip->protocol == PROTOCOL_ICMP) {
		struct icmp *icmp = transport;

		if ((void *)(icmp + 1) > end || !icmp_asks(icmp->type))
			return 0;
		return is_owned(external, 2, icmp->identifier);
	}
	return 0;
}

// Is a packet to a shared address the engine's? It is not a fragment.
INLINE int shared_is_owned(const struct external *external, struct ipv4 *ip, void *end)
{
	void *transport = (void *)ip + (ip->version_ihl & 15) * 4;

	if ((ip->version_ihl & 15) < 5)
		return 0;
	if (ip->protocol == PROTOCOL_TCP || ip->protocol == PROTOCOL_UDP) {
		struct ports *ports = transport;

		if ((void *)(ports + 1) > end)
			return 0;
		return is_owned(external, ip->protocol == PROTOCOL_UDP, ports->destination);
	}
	if (ip->protocol == PROTOCOL_ICMP) {
		struct icmp *icmp = transport;

		if ((void *)(icmp + 1) > end)
			return 0;
		if (icmp_is_error(icmp->type))
			return embedded_is_owned(external, ip->destination, icmp + 1, end);
		return icmp_answers(icmp->type) && is_owned(external, 2, icmp->identifier);
	}
	return 0;
}

// The classifier. In tc there is no `ctx`; the actions are XDP's. `tag`: bytes of a VLAN tag between the
// addresses and the type.
INLINE int steer(struct xdp_md *ctx, void *data, void *end, __u32 ifindex, __u32 tag)
{
	struct ethernet *ethernet = data;
	struct ipv4 *ip = (void *)(ethernet + 1) + tag;
	__u16 *type = (void *)ip - sizeof(*type);
	__u32 zero = 0;
	struct interface *interface;
	struct settings *setting;
	struct external *external;

	// 1: punted, not IPv4, not to this interface.
	if ((void *)ip > end)
		return pass();
	setting = map_lookup(&settings, &zero);
	if (setting && setting->punt_mark_set && same_mac(ethernet->source, setting->punt_mark)) {
		count(COUNT_PUNTED);
		return XDP_PASS;
	}
	interface = map_lookup(&interfaces, &ifindex);
	if (!interface || *type != ETHERTYPE_IPV4)
		return pass();
	if (!same_mac(ethernet->destination, interface->mac))
		return pass();
	if ((void *)(ip + 1) > end || ip->version_ihl >> 4 != 4)
		return pass();

	// 2, 3: to an external address.
	external = map_lookup(&externals, &ip->destination);
	if (external) {
		if (external->kind == KIND_OWN)
			return to_engine(ctx, interface, COUNT_OWN, XDP_DROP);
		// The host trusts internal sources no less than clients do.
		if (!(interface->role & ROLE_INTERNAL) && in_prefixes(&internals, ip->source)) {
			count(COUNT_SPOOFED);
			return XDP_DROP;
		}
		if (ip->fragment & FRAGMENT_BITS)
			return to_engine(ctx, interface, COUNT_FRAGMENTS, XDP_PASS);
		if (shared_is_owned(external, ip, end))
			return to_engine(ctx, interface, COUNT_SHARED, XDP_DROP);
		return pass();
	}

	// 4: from an internal address.
	if (!in_prefixes(&internals, ip->source)) {
		// A kernel that forwards would carry inside what was addressed there straight.
		if (interface->role & ROLE_EXTERNAL && in_prefixes(&internals, ip->destination) &&
		    !map_lookup(&locals, &ip->destination) && !in_prefixes(&bypasses, ip->source)) {
			count(COUNT_UNINVITED);
			return XDP_DROP;
		}
		return pass();
	}
	if (!(interface->role & ROLE_INTERNAL)) {
		count(COUNT_SPOOFED);
		return XDP_DROP;
	}
	if (map_lookup(&locals, &ip->destination) || in_prefixes(&internals, ip->destination) ||
	    in_prefixes(&bypasses, ip->destination))
		return pass();
	return to_engine(ctx, interface, COUNT_INTERNAL, XDP_DROP);
}

// Is it a VLAN tag of priority only, from its type on? The kernel takes it for none at all, also one in
// the other.
INLINE int is_priority_tag(__u16 *type, void *end)
{
	return (void *)(type + 2) <= end &&
	       (*type == ETHERTYPE_VLAN || *type == ETHERTYPE_SERVICE_VLAN) && !(type[1] & VLAN_ID);
}

SEC("xdp")
int egret_steer(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u16 *type = data + OFFSET_TYPE;

	if (!is_priority_tag(type, end))
		return steer(ctx, data, end, ctx->ingress_ifindex, 0);
	// Nothing may slip by under it: nobody sends two of them in earnest.
	if (is_priority_tag(type + 2, end))
		return XDP_DROP;
	// The engine knows no tags.
	return steer(ctx, data, end, ctx->ingress_ifindex, TAG_LEN) == XDP_PASS ? XDP_PASS : XDP_DROP;
}

// The same for socket buffers. What is passed goes on to the next program, if there is one.
SEC("classifier")
int egret_steer_tc(struct __sk_buff *skb)
{
	__u32 wanted = skb->len < HEADERS_MAX ? skb->len : HEADERS_MAX;
	void *data, *end;
	int action;

	// As in XDP, where the tag is in the frame and so is its type.
	if (skb->vlan_present && skb->vlan_tci & 0xfff) {
		pass();
		return TC_ACT_UNSPEC;
	}
	// The rest may lie in pages that cannot be read from here.
	if ((long)skb->data + wanted > skb->data_end)
		pull_data(skb, wanted);
	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	// A second one: the kernel has put the first beside the packet.
	if (skb->vlan_present && is_priority_tag(data + OFFSET_TYPE, end))
		return TC_ACT_SHOT;
	action = steer(0, data, end, skb->ifindex, 0);
	if (action == XDP_REDIRECT && skb->vlan_present)
		return TC_ACT_SHOT;
	if (action == XDP_REDIRECT)
		return TC_ACT_REDIRECT;
	return action == XDP_DROP ? TC_ACT_SHOT : TC_ACT_UNSPEC;
}

// What the engine writes into a door leaves by the interface of the door.
SEC("classifier")
int egret_leave(struct __sk_buff *skb)
{
	__u32 door = skb->ifindex;
	__u32 *target = map_lookup(&exits, &door);

	return target ? redirect(*target, 0) : TC_ACT_SHOT;
}

// What the engine writes into a TAP arrives on the interface that the TAP stands for.
SEC("classifier")
int egret_punt(struct __sk_buff *skb)
{
	__u32 tap = skb->ifindex;
	__u32 *target = map_lookup(&taps, &tap);

	return target ? redirect(*target, F_INGRESS) : TC_ACT_SHOT;
}
