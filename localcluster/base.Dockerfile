# The root of every local image: Debian with its Python, in place of the public python image.
# rootfs.tar is made from Debian packages by localcluster/images.py.
FROM scratch
ADD rootfs.tar /
ENV LANG=C.UTF-8
# A pod's sandbox runs this image as it is, and only has to stay.
CMD ["sleep", "infinity"]
