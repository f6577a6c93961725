/* SPDX-License-Identifier: MIT */
/*
 * Both halves under an arbitrary sequence of calls, against a model.
 *
 * Input: 2 bytes of set-up, then two bytes a call. All calls are legal ones and
 * nothing may break. With a bit of the set-up the used ring is scribbled upon
 * instead, and the driver half must never give a token that is not out.
 *
 * Invariants:
 *   every token comes back at most once, with the length the device gave;
 *   free + occupied descriptors = N; outstanding = added - taken back;
 *   nothing is seen by the device before publish(), nor by the driver;
 *   a side that armed and found nothing is notified by the next publication.
 */
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "guest_memory.h"
#include "input.h"
#include "virtqueue.h"

#define SIZE_MAX_LOG 5u /* queues of 1..32 */
#define MEMORY       (8 * 4096u)
#define DATA         0x4000u

static struct gm *mem; /* made once: a memfd an input would be all we measure */

/* One buffer of n segments in the driver half. */
static int add(struct vq_driver *driver, unsigned token, unsigned n, unsigned readable,
	       bool indirect)
{
	struct vq_segment segments[9];

	for (unsigned i = 0; i < n; i++)
		segments[i] = (struct vq_segment){DATA + 8 * i, 1 + i};
	if (indirect) /* tables at any alignment, one a token */
		return vq_driver_add_indirect(driver, segments, readable, n - readable,
					      DATA + 0x1000 + 160 * token + token % 16, token);
	return vq_driver_add(driver, segments, readable, n - readable, token);
}

/* The model of one buffer, indexed by token. */
struct buffer {
	enum { UNKNOWN, STAGED, VISIBLE, POPPED, PUSHED, SHOWN } state;
	unsigned cost;     /* descriptors */
	unsigned segments; /* as added */
	unsigned readable; /* as added */
	uint32_t len;      /* as pushed */
};

/* Legal calls against the model; queue size, features and calls from the input. */
static void run_model(struct vq_driver *driver, struct vq_device *device,
		      const struct vq_config *config, const uint8_t *calls, size_t n_calls)
{
	struct buffer buffers[64] = {0};        /* token = index; more than can be outstanding */
	unsigned fifo[64], first = 0, last = 0; /* tokens in the order of add() */
	unsigned popped[64], heads[64], n_popped = 0;
	unsigned occupied = 0, outstanding = 0, visible = 0, shown = 0, staged = 0, pushed = 0;
	bool may_indirect = config->features & VQ_F_INDIRECT_DESC;
	bool device_armed = false, driver_armed = false;

	for (size_t i = 0; i + 1 < n_calls; i += 2) {
		uint8_t call = calls[i], argument = calls[i + 1];
		struct vq_chain chain;
		uint64_t token;
		uint32_t len;
		int rc;

		switch (call % 11) {
		case 0:
		case 1: { /* add, direct or indirect */
			unsigned slot = last % 64;
			bool indirect = call & 128;
			unsigned n = argument % 9, readable = n ? argument / 9 % (n + 1) : 0;
			unsigned cost = indirect ? 1 : n;

			if (buffers[slot].state != UNKNOWN)
				break; /* an old one is still out */
			rc = add(driver, slot, n, readable, indirect);
			if (indirect && !may_indirect)
				must(rc == -EOPNOTSUPP);
			else if (n == 0 || n > config->size)
				must(rc == -EINVAL);
			else if (cost > config->size - occupied)
				must(rc == -ENOSPC);
			else
				must(rc == 0);
			if (rc)
				break;
			buffers[slot] = (struct buffer){STAGED, cost, n, readable, 0};
			fifo[last++ % 64] = slot;
			occupied += cost;
			outstanding++;
			staged++;
			break;
		}
		case 2:
		case 3: /* publish and ask */
			must(vq_driver_publish(driver) == staged);
			for (unsigned j = last - staged; j != last; j++)
				buffers[fifo[j % 64]].state = VISIBLE;
			rc = vq_driver_kick_needed(driver);
			must(staged || rc == 0);
			if (staged) {
				must(rc == 1 || !device_armed);
				device_armed = false;
			}
			visible += staged;
			staged = 0;
			break;
		case 4:
		case 5: { /* pop */
			struct buffer *b;

			rc = vq_device_pop(device, &chain);
			must(rc == (visible > 0));
			if (rc == 0)
				break;
			b = &buffers[fifo[first % 64]];
			must(b->state == VISIBLE);
			must(chain.count == b->segments && chain.readable == b->readable);
			b->state = POPPED;
			popped[n_popped] = fifo[first++ % 64];
			heads[n_popped++] = chain.head;
			visible--;
			break;
		}
		case 6: { /* push any of those popped */
			unsigned pick;

			if (n_popped == 0)
				break;
			pick = argument % n_popped;
			buffers[popped[pick]].state = PUSHED;
			buffers[popped[pick]].len = argument * 77u;
			vq_device_push(device, (uint16_t)heads[pick], argument * 77u);
			n_popped--;
			popped[pick] = popped[n_popped];
			heads[pick] = heads[n_popped];
			pushed++;
			break;
		}
		case 7: /* publish and ask */
			must(vq_device_publish(device) == pushed);
			for (unsigned j = 0; j < 64; j++)
				if (buffers[j].state == PUSHED)
					buffers[j].state = SHOWN;
			rc = vq_device_call_needed(device);
			must(pushed || rc == 0);
			if (pushed) {
				must(rc == 1 || !driver_armed);
				driver_armed = false;
			}
			shown += pushed;
			pushed = 0;
			break;
		case 8:
		case 9: /* take back */
			rc = vq_driver_get_used(driver, &token, &len);
			must(rc == (shown > 0));
			if (rc == 0)
				break;
			must(token < 64 && buffers[token].state == SHOWN);
			must(buffers[token].len == len);
			buffers[token].state = UNKNOWN;
			occupied -= buffers[token].cost;
			outstanding--;
			shown--;
			break;
		default: /* arm or disarm one side */
			switch (argument % 4) {
			case 0:
				vq_driver_disable_calls(driver);
				driver_armed = false;
				break;
			case 1:
				vq_device_disable_kicks(device);
				device_armed = false;
				break;
			case 2:
				rc = vq_driver_enable_calls(driver);
				must(rc == (shown > 0));
				driver_armed = !rc;
				break;
			default:
				rc = vq_device_enable_kicks(device);
				must(rc == (visible > 0));
				device_armed = !rc;
				break;
			}
		}
		must(vq_driver_free(driver) == config->size - occupied);
		must(vq_driver_outstanding(driver) == outstanding);
		must(vq_device_pending(device) == visible);
		must(vq_driver_broken(driver) == VQ_OK && vq_device_broken(device) == VQ_OK);
	}
}

/* The driver half against a used ring that is scribbled upon. */
static void run_hostile(struct vq_driver *driver, const struct vq_config *config,
			const uint8_t *calls, size_t n_calls)
{
	uint8_t *used = gm_at(mem, config->device_addr, 6 + 8 * (uint64_t)config->size);
	unsigned out[64] = {0}; /* visible buffers a token stands for */
	unsigned staged[64], n_staged = 0;
	enum vq_broken broken = VQ_OK;

	for (size_t i = 0; i + 2 < n_calls; i += 3) {
		unsigned slot = calls[i + 1] % 64;
		uint64_t token = 64;
		int rc;

		switch (calls[i] % 4) {
		case 0:
			if (n_staged == 64)
				break;
			rc = add(driver, slot, 1 + calls[i + 2] % 3, 1, false);
			must((rc == -EIO) == (broken != VQ_OK));
			if (rc == 0)
				staged[n_staged++] = slot;
			break;
		case 1:
			if (vq_driver_publish(driver) == 0)
				break;
			must(broken == VQ_OK);
			while (n_staged)
				out[staged[--n_staged]]++;
			vq_driver_kick_needed(driver);
			break;
		case 2:
			used[2 + (calls[i + 1] | calls[i] << 8) % (4 + 8 * config->size)] =
			    calls[i + 2];
			break;
		default:
			rc = vq_driver_get_used(driver, &token, NULL);
			must((rc == -EIO) == (vq_driver_broken(driver) != VQ_OK));
			if (rc == 1) { /* any visible one, but only as often as it is out */
				must(token < 64 && out[token] > 0);
				out[token]--;
			}
			break;
		}
		must(vq_driver_free(driver) <= config->size);
		must(vq_driver_outstanding(driver) <= config->size);
		must(broken == VQ_OK || broken == vq_driver_broken(driver));
		broken = vq_driver_broken(driver);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct vq_config config = {.desc_addr = 0, .driver_addr = 0x1000, .device_addr = 0x2000};
	struct vq_driver *driver;
	struct vq_device *device;

	if (size < 2)
		return 0;
	if (!mem)
		must(gm_create(MEMORY, &mem) == 0);
	config.size = 1u << data[0] % (SIZE_MAX_LOG + 1);
	config.features = VQ_F_VERSION_1 | (data[1] & 1 ? VQ_F_EVENT_IDX : 0) |
			  (data[1] & 2 ? VQ_F_INDIRECT_DESC : 0);
	must(vq_driver_create(mem, &config, &driver) == 0);
	must(vq_device_create(mem, &config, &device) == 0);
	if (data[1] & 4)
		run_hostile(driver, &config, data + 2, size - 2);
	else
		run_model(driver, device, &config, data + 2, size - 2);
	vq_driver_destroy(driver);
	vq_device_destroy(device);
	return 0;
}
