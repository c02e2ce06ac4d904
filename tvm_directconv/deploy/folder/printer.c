static void print_largest_@type@(const char *name, const @type@ *values, size_t count,
                                 double scale, int zero_point) {
    size_t best[TOP], found = 0;
    for (size_t i = 0; i < count; i++) {
        size_t at = found < TOP ? found++ : TOP;
        for (; at > 0 && values[i] > values[best[at - 1]]; at--)
            if (at < TOP) best[at] = best[at - 1];
        if (at < TOP) best[at] = i;
    }
    printf("%s: largest of %zu values\n", name, count);
    for (size_t i = 0; i < found; i++) {
        double value = (double)values[best[i]];
        printf("%10zu  %g", best[i], value);
        if (scale > 0) printf("  stands for %g", scale * (value - zero_point));
        printf("\n");
    }
}
