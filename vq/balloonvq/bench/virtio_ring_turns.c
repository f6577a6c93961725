/* SPDX-License-Identifier: MIT */
/*
 * The kernel's drivers/virtio/virtio_ring.c, compiled for user space with the headers of its
 * tools/virtio, as the driver of a split ring: one thread plays both sides in turn, K buffers
 * at a time. The device's side is as short as it can be: it checks nothing.
 *
 *   virtio_ring_turns QUEUE_SIZE K BUFFERS      prints the nanoseconds that it took
 *
 * `balloonctl bench ring --ringtest` compiles and runs it beside its own rows.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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

/* Marks up to `max` buffers used and shows them; asks whether the driver wants to be called. */
static unsigned serve(struct vring *ring, unsigned short *done, unsigned max, unsigned long *calls)
{
	unsigned short old = *done;
	unsigned n = 0;

	while (n < max && *done != __atomic_load_n(&ring->avail->idx, __ATOMIC_ACQUIRE)) {
		unsigned slot = (*done)++ & (ring->num - 1);

		ring->used->ring[slot].id = ring->avail->ring[slot];
		ring->used->ring[slot].len = 0;
		n++;
	}
	__atomic_store_n(&ring->used->idx, *done, __ATOMIC_RELEASE);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	*calls += vring_need_event(vring_used_event(ring), *done, old);
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
	unsigned long buffers = argc == 4 ? atol(argv[3]) : 0, back = 0, notices = 0, start;
	struct virtio_device device = {.features = 1ull << EVENT_IDX | 1ull << VERSION_1};
	struct scatterlist sg;
	struct virtqueue *vq;
	unsigned short done = 0;
	struct vring ring;
	void *memory, *data;

	if (!size || !batch || batch > size || buffers % batch)
		return 2;
	if (posix_memalign(&memory, ALIGN_BYTES, vring_size(size, ALIGN_BYTES)) ||
	    posix_memalign(&data, ALIGN_BYTES, (size_t)BUFFER_BYTES * size))
		return 1;
	memset(memory, 0, vring_size(size, ALIGN_BYTES));
	INIT_LIST_HEAD(&device.vqs);
	spin_lock_init(&device.vqs_list_lock);
	vq = vring_new_virtqueue(0, size, ALIGN_BYTES, &device, true, false, memory, notify,
				 callback, "ring");
	if (!vq)
		return 1;
	vring_init(&ring, size, memory, ALIGN_BYTES);
	virtqueue_disable_cb(vq);
	vring_avail_event(&ring) = EVENT_FAR;

	start = now_ns();
	while (back < buffers) {
		unsigned len, n;

		for (n = 0; n < batch; n++) {
			char *token = (char *)data + BUFFER_BYTES * ((back + n) & (size - 1));

			sg_init_one(&sg, token, BUFFER_BYTES);
			if (virtqueue_add_outbuf(vq, &sg, 1, token, GFP_ATOMIC))
				return 1;
		}
		notices += virtqueue_kick_prepare(vq);
		if (serve(&ring, &done, batch, &notices) != batch)
			return 1;
		for (n = 0; n < batch; n++, back++)
			if (virtqueue_get_buf(vq, &len) !=
			    (char *)data + BUFFER_BYTES * (back & (size - 1)))
				return 1;
	}
	printf("%lu\n", now_ns() - start);
	return 0;
}
