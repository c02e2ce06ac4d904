static void print_largest_@type@(const char *name, const @type@ *values, size_t count) {
    size_t best[TOP], found = 0;
    for (size_t i = 0; i < count; i++) {
        size_t at = found < TOP ? found++ : TOP;
        for (; at > 0 && values[i] > values[best[at - 1]]; at--)
            if (at < TOP) best[at] = best[at - 1];
        if (at < TOP) best[at] = i;
    }
    printf("%s: largest of %zu values\n", name, count);
    for (size_t i = 0; i < found; i++)
        printf("%10zu  %g\n", best[i], (double)values[best[i]]);
}
