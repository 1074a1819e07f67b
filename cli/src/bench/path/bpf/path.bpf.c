// SPDX-License-Identifier: MIT OR Apache-2.0
//
// The programs of `egret bench path`: a generator of 64-byte UDP frames, a sink that counts and drops
// them, a counter of ICMP errors, and a steering program that gives every frame to an AF_XDP socket.
// Built by build.sh; the object is committed beside this file. The bench fills `plan` and `wanted`.

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;

// linux/bpf.h: the parts of the kernel's interface that are used here.
enum { MAP_ARRAY = 2, MAP_PERCPU_ARRAY = 6, MAP_XSKMAP = 17 };
enum { XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_TX, XDP_REDIRECT };
enum { TC_ACT_OK = 0, TC_ACT_SHOT = 2 };

struct xdp_md {
	__u32 data, data_end, data_meta;
	__u32 ingress_ifindex, rx_queue_index, egress_ifindex;
};

struct __sk_buff {
	__u32 len, pkt_type, mark, queue_mapping, protocol, vlan_present, vlan_tci, vlan_proto;
	__u32 priority, ingress_ifindex, ifindex, tc_index, cb[5], hash, tc_classid, data, data_end;
};

static void *(*map_lookup)(void *map, const void *key) = (void *)1;
static __u64 (*now_ns)(void) = (void *)5;
static long (*redirect)(__u32 ifindex, __u64 flags) = (void *)23;
static long (*redirect_map)(void *map, __u64 key, __u64 flags) = (void *)51;

#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))
#define HOST16(x) __builtin_bswap16(x)
#define HOST32(x) __builtin_bswap32(x)

// A frame of 60 bytes: 64 with the checksum that a wire would add.
struct frame {
	__u16 destination[3], source[3], type;
	__u8 version_ihl, tos;
	__u16 total_length, identification, fragment;
	__u8 ttl, protocol;
	__u16 header_checksum;
	__u16 from[2], to[2];
	__u16 from_port, to_port, length, checksum;
	__u16 payload[9];
};

// What to send. The Rust side (`program.rs`) writes these words in this order.
struct plan {
	__u64 ifindex;
	__u64 destination, source;	// Ethernet addresses, first byte lowest
	__u64 endpoint_bits;		// internal endpoints: 1 << endpoint_bits
	__u64 flow_bits;		// flows: 1 << flow_bits
	__u64 second_bits;		// endpoints of the second kind, to one remote; 0: no second kind
	__u64 internal, remote;		// first internal and first remote address, in host order
	__u64 gap;			// between two frames, in 1/1024 ns; 0: as fast as it goes
	__u64 duration_ns;
	__u64 first;			// number of the first frame
};

// How far it got: frames sent, and turns to send one that have passed, sent or not.
struct progress { __u64 begun_ns, turns, sent; };

struct {
	int (*type)[MAP_ARRAY];
	int (*max_entries)[1];
	__u32 *key;
	struct plan *value;
} plan SEC(".maps");
struct {
	int (*type)[MAP_ARRAY];
	int (*max_entries)[1];
	__u32 *key;
	struct progress *value;
} progress SEC(".maps");
// The gateway's external address, in network order.
struct {
	int (*type)[MAP_ARRAY];
	int (*max_entries)[1];
	__u32 *key;
	__u32 *value;
} wanted SEC(".maps");
// Frames of the first and second kind with the wanted source, the same with another, ICMP errors.
enum { COUNT_WANTED = 0, COUNT_OTHER = 2, COUNT_ERRORS = 4, COUNTERS = 5 };
struct {
	int (*type)[MAP_PERCPU_ARRAY];
	int (*max_entries)[COUNTERS];
	__u32 *key;
	__u64 *value;
} counts SEC(".maps");
struct {
	int (*type)[MAP_XSKMAP];
	int (*max_entries)[64];
	__u32 *key;
	__u32 *value;
} sockets SEC(".maps");

enum { PORT_FIRST_KIND = 9000, PORT_SECOND_KIND = 9001 };
enum { FRAME_BYTES = 60, IP_BYTES = 46, UDP_BYTES = 26, TTL = 64, UDP = 17, ICMP = 1, DESTINATION_UNREACHABLE = 3 };
// Endpoints that share an internal address, and the ports that each may have of 32768-60991.
enum { PORTS_PER_ADDRESS = 64, PORT_STRIDE = 441, PORT_MIN = 32768 };
// Frames between two looks at the clock when there is no pace to keep.
enum { CLOCK_EVERY = 64 };
// Looks at the clock before a frame that is not due yet is given up for this turn.
enum { WAITS_MAX = 160 };
// A sender that was held up catches up with this much at most.
enum { LAG_MAX_NS = 50000 };

INLINE __u16 folded(__u64 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (__u16)~sum;
}

// All numbers below 1 << bits, each once, in an order without a pattern.
INLINE __u64 shuffled(__u64 number, __u64 bits)
{
	__u64 mask = (1ull << (bits & 31)) - 1;
	number = (number * 0x9e3779b1ull) & mask;
	number ^= number >> ((bits & 31) / 2 + 1);
	return (number * 0x85ebca6bull) & mask;
}

INLINE __u16 port_of(__u64 endpoint)
{
	__u32 shift = ((__u32)(endpoint / PORTS_PER_ADDRESS) * 0x9e3779b1u) >> 8;
	return PORT_MIN + endpoint % PORTS_PER_ADDRESS * PORT_STRIDE + shift % PORT_STRIDE;
}

INLINE void put_mac(__u16 *to, __u64 mac)
{
	to[0] = mac;
	to[1] = mac >> 16;
	to[2] = mac >> 32;
}

// Writes every byte: the page held somebody else's packet before.
INLINE void write_frame(struct frame *frame, const struct plan *plan, __u64 number)
{
	__u64 endpoint, remote = plan->remote;
	__u16 port = PORT_FIRST_KIND;
	if (plan->second_bits && number & 1) {
		endpoint = number / 2 & ((1ull << (plan->second_bits & 31)) - 1);
		remote -= 1;
		port = PORT_SECOND_KIND;
	} else {
		__u64 flow = shuffled(plan->second_bits ? number / 2 : number, plan->flow_bits);
		endpoint = flow & ((1ull << (plan->endpoint_bits & 31)) - 1);
		remote += flow >> (plan->endpoint_bits & 31);
	}
	__u32 from = HOST32((__u32)(plan->internal + endpoint / PORTS_PER_ADDRESS));
	__u32 to = HOST32((__u32)remote);
	put_mac(frame->destination, plan->destination);
	put_mac(frame->source, plan->source);
	frame->type = HOST16(0x0800);
	frame->version_ihl = 0x45;
	frame->tos = 0;
	frame->total_length = HOST16(IP_BYTES);
	frame->identification = 0;
	frame->fragment = HOST16(0x4000);
	frame->ttl = TTL;
	frame->protocol = UDP;
	frame->from[0] = from;
	frame->from[1] = from >> 16;
	frame->to[0] = to;
	frame->to[1] = to >> 16;
	frame->from_port = HOST16(port_of(endpoint));
	frame->to_port = HOST16(port);
	frame->length = HOST16(UDP_BYTES);
	// The payload is zeroes but for the frame's number.
	frame->payload[0] = number;
	frame->payload[1] = number >> 16;
#pragma unroll
	for (int at = 2; at < 9; at++)
		frame->payload[at] = 0;
	__u64 addresses = (__u64)frame->from[0] + frame->from[1] + frame->to[0] + frame->to[1];
	frame->header_checksum = folded(addresses + HOST16(0x4500) + HOST16(IP_BYTES) + HOST16(0x4000)
		+ HOST16(TTL << 8 | UDP));
	__u16 checksum = folded(addresses + HOST16(UDP) + 2 * HOST16(UDP_BYTES) + frame->from_port
		+ frame->to_port + frame->payload[0] + frame->payload[1]);
	frame->checksum = checksum ? checksum : 0xffff;
}

// Is it time for the next frame? 0: not yet, or the run is over.
INLINE int is_due(const struct plan *plan, struct progress *progress)
{
	if (!plan->gap && progress->turns % CLOCK_EVERY)
		return 1;
	__u64 now = now_ns();
	if (!progress->begun_ns)
		progress->begun_ns = now;
	if (now - progress->begun_ns >= plan->duration_ns)
		return 0;
	if (!plan->gap)
		return 1;
	__u64 due = progress->begun_ns + (progress->turns * plan->gap >> 10);
	for (int wait = 0; wait < WAITS_MAX && now < due; wait++)
		now = now_ns();
	if (now > due + LAG_MAX_NS)
		progress->turns += ((now - due) << 10) / plan->gap;
	return now >= due;
}

SEC("xdp")
int generate(struct xdp_md *ctx)
{
	__u32 zero = 0;
	struct frame *frame = (void *)(long)ctx->data;
	struct plan *the_plan = map_lookup(&plan, &zero);
	struct progress *so_far = map_lookup(&progress, &zero);

	if ((void *)(frame + 1) > (void *)(long)ctx->data_end || !the_plan || !so_far)
		return XDP_ABORTED;
	if (!is_due(the_plan, so_far))
		return XDP_DROP;
	write_frame(frame, the_plan, the_plan->first + so_far->sent);
	so_far->turns++;
	so_far->sent++;
	return redirect(the_plan->ifindex, 0);
}

INLINE void count(__u32 which)
{
	__u64 *counter = map_lookup(&counts, &which);

	if (counter)
		*counter += 1;
}

// The server's end: what the generator sent is counted and ends here.
SEC("classifier")
int sink(struct __sk_buff *skb)
{
	__u32 zero = 0;
	struct frame *frame = (void *)(long)skb->data;
	__u32 *source = map_lookup(&wanted, &zero);

	if ((void *)(frame + 1) > (void *)(long)skb->data_end || !source)
		return TC_ACT_OK;
	__u16 kind = HOST16(frame->to_port) - PORT_FIRST_KIND;
	if (frame->type != HOST16(0x0800) || frame->protocol != UDP || kind > 1)
		return TC_ACT_OK;
	__u32 from = frame->from[0] | (__u32)frame->from[1] << 16;
	count((from == *source ? COUNT_WANTED : COUNT_OTHER) + kind);
	return TC_ACT_SHOT;
}

// The client's end: ICMP errors are counted and end here. They are for addresses that nobody has.
SEC("classifier")
int errors(struct __sk_buff *skb)
{
	struct frame *frame = (void *)(long)skb->data;

	if ((void *)(frame + 1) > (void *)(long)skb->data_end)
		return TC_ACT_OK;
	__u8 type = frame->from_port;
	if (frame->type != HOST16(0x0800) || frame->protocol != ICMP || type != DESTINATION_UNREACHABLE)
		return TC_ACT_OK;
	count(COUNT_ERRORS);
	return TC_ACT_SHOT;
}

// The bare forwarder's: every frame goes to the socket of its queue.
SEC("xdp")
int to_socket(struct xdp_md *ctx)
{
	return redirect_map(&sockets, ctx->rx_queue_index, XDP_DROP);
}

char program_license[] SEC("license") = "Dual MIT/GPL";
