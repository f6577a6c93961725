/* Description: the latency histogram: buckets, quantiles, several writers. */
#include <pthread.h>
#include <stdlib.h>

#include "helpers.h"
#include "histogram.h"

static void test_buckets_cover_every_value_once(void)
{
	t_equal(0, histogram_low(0));
	for (unsigned i = 0; i < HISTOGRAM_BUCKETS; i++) {
		t_equal(i, histogram_bucket(histogram_low(i)));
		t_equal(i, histogram_bucket(histogram_high(i)));
		if (i > 0)
			t_check(histogram_low(i) == histogram_high(i - 1) + 1);
	}
	t_check(histogram_high(HISTOGRAM_BUCKETS - 1) == UINT64_MAX);
	t_check(histogram_high(HISTOGRAM_BUCKETS) == UINT64_MAX);
}

static void test_bucket_is_a_sixteenth_wide_at_most(void)
{
	for (unsigned i = HISTOGRAM_PARTS; i < HISTOGRAM_BUCKETS; i++) {
		const uint64_t low = histogram_low(i);

		t_check((histogram_high(i) - low) <= low / 16);
	}
}

static int compare(const void *a, const void *b)
{
	const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

static void test_quantiles_against_sorted_values(void)
{
	enum { N = 999 };
	static uint64_t values[N];
	static struct histogram h;
	uint64_t random = 5, sum = 0;

	histogram_init(&h);
	t_equal(0, histogram_quantile(&h, 500));
	t_check(h.min == UINT64_MAX);
	for (unsigned i = 0; i < N; i++) {
		values[i] = t_random(&random) >> (t_random(&random) % 50 + 10);
		sum += values[i];
		histogram_record(&h, values[i]);
	}
	qsort(values, N, sizeof(values[0]), compare);
	t_equal(N, h.count);
	t_check(h.sum == sum);
	t_check(h.min == values[0] && h.max == values[N - 1]);
	for (unsigned permille = 0; permille <= 1000; permille++) {
		const unsigned rank = (N * permille + 999) / 1000;
		const uint64_t exact = values[rank ? rank - 1 : 0];
		const uint64_t got = histogram_quantile(&h, permille);

		t_check(got >= exact && got - exact <= exact / 16);
	}
	t_check(histogram_quantile(&h, 1000) == values[N - 1]);
	t_check(histogram_quantile(&h, 5000) == values[N - 1]);
}

static void *record(void *arg)
{
	for (uint64_t i = 0; i < 20000; i++)
		histogram_record(arg, i);
	return NULL;
}

static void test_several_writers_and_a_reader(void)
{
	static struct histogram h, copy;
	pthread_t threads[3];

	histogram_init(&h);
	for (unsigned i = 0; i < 3; i++)
		t_equal(0, pthread_create(&threads[i], NULL, record, &h));
	for (unsigned i = 0; i < 50; i++) {
		histogram_copy(&h, &copy);
		t_check(copy.count <= 60000);
		t_check(histogram_quantile(&h, 990) < 20000);
	}
	for (unsigned i = 0; i < 3; i++)
		pthread_join(threads[i], NULL);
	histogram_copy(&h, &copy);
	t_equal(60000, copy.count);
	t_equal(0, copy.min);
	t_equal(19999, copy.max);
	t_check(copy.sum == 3ull * 19999 * 20000 / 2);
}

static const struct t_test tests[] = {
    T_TEST(test_buckets_cover_every_value_once),
    T_TEST(test_bucket_is_a_sixteenth_wide_at_most),
    T_TEST(test_quantiles_against_sorted_values),
    T_TEST(test_several_writers_and_a_reader),
};

int main(void)
{
	return t_run(tests, T_COUNT(tests));
}
