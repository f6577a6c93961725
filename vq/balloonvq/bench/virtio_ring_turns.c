/* SPDX-License-Identifier: MIT */
/*
 * The kernel's drivers/virtio/virtio_ring.c, compiled for user space with the headers of its
 * tools/virtio, as the driver of a split ring: one thread plays both sides in turn, K buffers
 * at a time. The device half is here, as short as one can be that serves buffers of a single
 * descriptor: like balloonvq's, it reads each word once, checks it, and turns the guest's address
 * into one of its own memory.
 *
 *   virtio_ring_turns QUEUE_SIZE K BUFFERS      prints the nanoseconds that it took
 *
 * `balloonctl bench ring --ringtest` compiles and runs it beside its own rows.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>

#include <linux/virtio.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>
#include <linux/virtio_types.h>

#define BUFFER_BYTES 64
#define ALIGN_BYTES  4096
#define EVENT_IDX    29 /* feature bits */
#define VERSION_1    32
#define EVENT_FAR    0x8000 /* an event that nobody passes soon */

/* The kernel's user-space headers want them. */
void *__kmalloc_fake, *__kfree_ignore_start, *__kfree_ignore_end;

/* tools/virtio/linux/virtio.h leaves it out. */
bool virtqueue_kick_prepare(struct virtqueue *vq);

static bool notify(struct virtqueue *vq)
{
	return true;
}

static void callback(struct virtqueue *vq)
{
}

struct device_half {
	struct vring ring;
	struct iovec memory;       /* where buffers may lie */
	struct iovec segment;      /* of the buffer taken last */
	unsigned short next, seen; /* entries of the available ring: taken, known to be there */
	unsigned long calls;       /* that the driver wanted */
};

/* Takes the next buffer: 1 and its head, 0 if there is none, -1 if the driver broke a rule. */
static int pop(struct device_half *device, unsigned short *head)
{
	const struct vring *ring = &device->ring;
	const struct vring_desc *desc;
	unsigned long addr, offset;
	unsigned len, flags;

	if (device->next == device->seen) {
		unsigned short idx = __atomic_load_n(&ring->avail->idx, __ATOMIC_ACQUIRE);
		unsigned short fresh = idx - device->next;

		if (!fresh)
			return 0;
		if (fresh > ring->num)
			return -1;
		device->seen = idx;
	}
	*head = READ_ONCE(ring->avail->ring[device->next & (ring->num - 1)]);
	if (*head >= ring->num)
		return -1;
	desc = &ring->desc[*head];
	addr = READ_ONCE(desc->addr);
	len = READ_ONCE(desc->len);
	flags = READ_ONCE(desc->flags);
	offset = addr - (unsigned long)device->memory.iov_base;
	if (flags & (VRING_DESC_F_NEXT | VRING_DESC_F_INDIRECT) ||
	    offset >= device->memory.iov_len || len - 1ul >= device->memory.iov_len - offset)
		return -1;
	device->segment.iov_base = (char *)device->memory.iov_base + offset;
	device->segment.iov_len = len;
	device->next++;
	return 1;
}

/* Marks up to `max` buffers used and shows them; asks whether the driver wants to be called. */
static unsigned serve(struct device_half *device, unsigned max)
{
	struct vring *ring = &device->ring;
	unsigned short old = device->next, head;
	unsigned n = 0;

	for (; n < max && pop(device, &head) == 1; n++) {
		unsigned slot = (unsigned short)(old + n) & (ring->num - 1);

		ring->used->ring[slot].id = head;
		ring->used->ring[slot].len = 0;
	}
	__atomic_store_n(&ring->used->idx, device->next, __ATOMIC_RELEASE);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	device->calls += vring_need_event(vring_used_event(ring), device->next, old);
	return n;
}

static unsigned long now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ul + t.tv_nsec;
}

int main(int argc, char **argv)
{
	unsigned size = argc == 4 ? atoi(argv[1]) : 0, batch = argc == 4 ? atoi(argv[2]) : 0;
	unsigned long buffers = argc == 4 ? atol(argv[3]) : 0, back = 0, kicks = 0, start;
	struct virtio_device virtio = {.features = 1ull << EVENT_IDX | 1ull << VERSION_1};
	struct scatterlist sg;
	struct virtqueue *vq;
	static struct device_half device;
	void *memory, *data;

	if (!size || !batch || batch > size || buffers % batch)
		return 2;
	if (posix_memalign(&memory, ALIGN_BYTES, vring_size(size, ALIGN_BYTES)) ||
	    posix_memalign(&data, ALIGN_BYTES, (size_t)BUFFER_BYTES * size))
		return 1;
	memset(memory, 0, vring_size(size, ALIGN_BYTES));
	INIT_LIST_HEAD(&virtio.vqs);
	spin_lock_init(&virtio.vqs_list_lock);
	vq = vring_new_virtqueue(0, size, ALIGN_BYTES, &virtio, true, false, memory, notify,
				 callback, "ring");
	if (!vq)
		return 1;
	vring_init(&device.ring, size, memory, ALIGN_BYTES);
	device.memory.iov_base = data;
	device.memory.iov_len = (size_t)BUFFER_BYTES * size;
	virtqueue_disable_cb(vq);
	vring_avail_event(&device.ring) = EVENT_FAR;

	start = now_ns();
	while (back < buffers) {
		unsigned len, n;

		for (n = 0; n < batch; n++) {
			char *token = (char *)data + BUFFER_BYTES * ((back + n) & (size - 1));

			sg_init_one(&sg, token, BUFFER_BYTES);
			if (virtqueue_add_outbuf(vq, &sg, 1, token, GFP_ATOMIC))
				return 1;
		}
		kicks += virtqueue_kick_prepare(vq);
		if (serve(&device, batch) != batch)
			return 1;
		for (n = 0; n < batch; n++, back++)
			if (virtqueue_get_buf(vq, &len) !=
			    (char *)data + BUFFER_BYTES * (back & (size - 1)))
				return 1;
	}
	printf("%lu\n", now_ns() - start);
	return 0;
}
