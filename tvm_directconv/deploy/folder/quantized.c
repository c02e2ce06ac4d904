/* Values as in read_input, or floats, of which there are four times as many bytes. */
static void read_@input@(const char *path) {
    static DIRECTCONV_ALIGNED float real[@elements@];
    if (!holds_floats(path, (long)sizeof real)) {
        read_input(path, @variable@, sizeof @variable@, "@type@",
                   "@contents@");
        return;
    }
    read_input(path, real, sizeof real, "@float@", "@contents@");
    for (size_t i = 0; i < @elements@; i++) @variable@[i] = @name@_quantize_@input@(real[i]);
}
