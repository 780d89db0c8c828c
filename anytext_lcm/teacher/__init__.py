"""The stages that train the embedded teacher; `anytext_lcm.build_teacher` runs them."""
