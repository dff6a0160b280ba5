def student_beside_teachers(i, m):
    from PIL import Image
    return Image.new("RGB",(8,8))
