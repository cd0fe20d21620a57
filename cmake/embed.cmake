# embed(SOURCE NAME FILE): SOURCE becomes a C file with the bytes of FILE as NAME[], and their number as NAME_size.
function(embed source name file)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${file})
  file(READ ${file} hex HEX)
  string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${hex}")
  string(REGEX REPLACE "(0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,)" "\\1\n" bytes "${bytes}")
  file(CONFIGURE OUTPUT ${source} CONTENT
    "#include <stddef.h>\nextern const unsigned char ${name}[];\nextern const size_t ${name}_size;\nconst unsigned char ${name}[] = {\n${bytes}};\nconst size_t ${name}_size = sizeof ${name};\n" @ONLY)
endfunction()
